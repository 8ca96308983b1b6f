"""RAT+ in PyTorch, float32, as its publication states it: plain loops, nothing shared with us.

State dicts have the released trainer's names. Per layer: RMSNorm; one matrix for output gate,
q, k, v and the memory's gate; h_t = g_t h_{t-1} + (1 - g_t) x_t over keys and values from
zero; RoPE after it; softmax over the visible keys; output gate; output matrix; residual.
"""

import torch
from torch import nn


def random_state(
    width: int, layers: int, vocab: int, apart: bool, memory: bool = True, seed: int = 0
) -> dict[str, torch.Tensor]:
    """A state dict. `apart`: the gate is a matrix `fgate_proj` of its own, not in `in_proj`."""
    torch.manual_seed(seed)

    def matrix(*shape: int) -> torch.Tensor:
        return 0.15 * torch.randn(*shape)

    state = {"embedding.wte.weight": 5 * matrix(vocab, width)}
    for i in range(layers):
        layer = f"backbone.layers.{i}."
        merged = 5 if memory and not apart else 4
        state[layer + "seq_layer.in_proj.weight"] = matrix(merged * width, width)
        if memory and apart:
            state[layer + "seq_layer.fgate_proj.weight"] = matrix(width, width)
        state[layer + "seq_layer.input_norm.weight"] = 1 + matrix(width)
        state[layer + "seq_layer.out_proj.weight"] = matrix(width, width)
        state[layer + "hidden_layer.fc1.weight"] = matrix(4 * width, width)
        state[layer + "hidden_layer.fc2.weight"] = matrix(width, 4 * width)
        state[layer + "hidden_layer.ln.weight"] = 1 + matrix(width)
    state["backbone.ln.weight"] = 1 + matrix(width)
    state["head.lm_head.weight"] = state["embedding.wte.weight"]
    return state


def norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-6) * weight


def rotate(x: torch.Tensor, position: int) -> torch.Tensor:
    """RoPE on [heads, D], base 10000: channel c pairs with channel c + D/2."""
    half = x.shape[-1] // 2
    angle = position * 10_000.0 ** (-torch.arange(half, dtype=torch.float32) / half)
    a, b = x[:, :half], x[:, half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


def visible(i: int, dilation: int, local: int, initial: int) -> list[int]:
    """The keys that query i sees."""
    return [
        j
        for j in range(i + 1)
        if (dilation > 0 and (j + 1) % dilation == 0) or i - j <= local or j < initial
    ]


class Layer:
    """One layer that reads a sequence token by token; prefill and decode are the same to it."""

    def __init__(self, state: dict[str, torch.Tensor], index: int, heads: int):
        self.heads = heads
        prefix = f"backbone.layers.{index}."
        own = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
        self.w = own
        width = own["seq_layer.out_proj.weight"].shape[0]
        stacked = own["seq_layer.in_proj.weight"]
        self.parts = list(stacked.split(width))
        if "seq_layer.fgate_proj.weight" in own:
            self.parts.append(own["seq_layer.fgate_proj.weight"])
        shape = (heads, width // heads)
        self.k_mem, self.v_mem = torch.zeros(shape), torch.zeros(shape)
        self.keys: list[torch.Tensor] = []
        self.values: list[torch.Tensor] = []

    def __call__(self, x: torch.Tensor, pattern: tuple[int, int, int]) -> torch.Tensor:
        h = norm(x, self.w["seq_layer.input_norm.weight"])
        projected = [(part @ h).reshape(self.heads, -1) for part in self.parts]
        o, q, k, v = projected[:4]
        if len(projected) == 5:
            g = torch.sigmoid(projected[4])
            k = self.k_mem = g * self.k_mem + (1 - g) * k
            v = self.v_mem = g * self.v_mem + (1 - g) * v
        i = len(self.keys)
        self.keys.append(rotate(k, i))
        self.values.append(v)
        q = rotate(q, i)
        seen = visible(i, *pattern)
        keys = torch.stack([self.keys[j] for j in seen])
        values = torch.stack([self.values[j] for j in seen])
        scores = torch.einsum("hd,shd->hs", q, keys) / keys.shape[-1] ** 0.5
        out = torch.einsum("hs,shd->hd", scores.softmax(-1), values)
        x = x + self.w["seq_layer.out_proj.weight"] @ (out * torch.sigmoid(o)).reshape(-1)
        h = norm(x, self.w["hidden_layer.ln.weight"])
        wide = nn.functional.gelu(self.w["hidden_layer.fc1.weight"] @ h)
        return x + self.w["hidden_layer.fc2.weight"] @ wide


class Model:
    """The whole decoder; `read` one token, get its logits."""

    def __init__(self, state: dict[str, torch.Tensor], heads: int):
        self.state = state
        layers = sum(name.endswith("in_proj.weight") for name in state)
        self.layers = [Layer(state, i, heads) for i in range(layers)]

    @torch.no_grad()
    def read(self, token: int, pattern: tuple[int, int, int] = (1, 0, 0)) -> torch.Tensor:
        x = self.state["embedding.wte.weight"][token]
        for layer in self.layers:
            x = layer(x, pattern)
        return self.state["head.lm_head.weight"] @ norm(x, self.state["backbone.ln.weight"])


def logits(state, heads: int, tokens, pattern=(1, 0, 0)) -> torch.Tensor:
    """[T, V] for one sequence; pattern = (dilation, local, initial)."""
    model = Model(state, heads)
    return torch.stack([model.read(int(token), pattern) for token in tokens])


def greedy(state, heads: int, tokens, count: int, pattern=(1, 0, 0)) -> list[int]:
    """The continuation, decoded step by step under the same pattern."""
    model = Model(state, heads)
    for token in tokens:
        out = model.read(int(token), pattern)
    found = []
    for _ in range(count):
        found.append(int(out.argmax()))
        out = model.read(found[-1], pattern)
    return found
