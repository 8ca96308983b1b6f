"""The memory as a PyTorch user would run it: a compiled associative scan with its own backward.

Written from the description of the released RAT+ code (repository wimh966/rat-plus): float32
throughout, the gate repeated for keys and values side by side, the backward pass a scan from the
end with the gate shifted by one position.
"""

import timing
import torch
from torch._higher_order_ops.associative_scan import associative_scan


def _combine(first, second):
    return first[0] * second[0], second[0] * first[1] + second[1]


def _scan(gate, x):
    return associative_scan(_combine, (gate, x), dim=1, combine_mode="pointwise")[1]


_compiled_scan = torch.compile(_scan)


@torch.compile
def _inputs_of(gate_logits, k, v):
    gate = torch.sigmoid(gate_logits.float())
    gate = torch.cat([gate, gate], dim=-1)
    return gate, (1 - gate) * torch.cat([k, v], dim=-1).float()


@torch.compile
def _reversed_inputs(gate, d_state):
    shifted = torch.cat([gate[:, 1:], torch.zeros_like(gate[:, :1])], dim=1)
    return shifted.flip(1).contiguous(), d_state.flip(1).contiguous()


@torch.compile
def _gradients(state, d_state):
    d_state = d_state.flip(1)
    before = torch.cat([torch.zeros_like(state[:, :1]), state[:, :-1]], dim=1)
    return before * d_state, d_state


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx, gate, x):
        state = _compiled_scan(gate, x)
        ctx.save_for_backward(gate, state)
        return state

    @staticmethod
    def backward(ctx, d_state):
        gate, state = ctx.saved_tensors
        return _gradients(state, _compiled_scan(*_reversed_inputs(gate, d_state)))


def _memory(gate_logits, k, v):
    state = _Recurrence.apply(*_inputs_of(gate_logits, k, v))
    return state.to(k.dtype).chunk(2, dim=-1)


def milliseconds(shape) -> dict[str, float]:
    """Forward, and forward with backward, of bfloat16 inputs of `shape` [B, T, heads, D]."""
    torch._dynamo.reset()  # a second shape would make it generalise, which associative_scan cannot
    batch, length, heads, channels = shape
    arrays = [
        torch.randn(batch, length, heads * channels, device="cuda", dtype=torch.bfloat16)
        for _ in range(5)
    ]
    wide = [x.requires_grad_() for x in arrays[:3]]

    def forward():
        with torch.no_grad():
            return _memory(*wide)

    def train():
        k_mem, v_mem = _memory(*wide)
        torch.autograd.grad((k_mem, v_mem), wide, arrays[3:])

    return {
        "decay_scan_forward": timing.torch_milliseconds(forward, calls=3),
        "decay_scan_train": timing.torch_milliseconds(train, calls=3),
    }
