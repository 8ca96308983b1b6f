"""Prints the table of docs/convert.md: what a near-identity gate moves, and what it can learn.

    python docs/near_identity.py

A random OLMo2-shaped model (4 layers, width 256, 4 heads of 64, float32, weights N(0, 0.02^2)),
8 sequences of 256 random tokens, next-token cross-entropy.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ratjax.config.model import MemoryConfig, ModelConfig
from ratjax.config.presets import with_memory
from ratjax.model import Decoder
from ratjax.model.parameters import to_model, to_parameters

CONFIG = ModelConfig(
    vocab_size=1024,
    hidden_size=256,
    num_layers=4,
    num_heads=4,
    num_kv_heads=4,
    head_dim=64,
    intermediate_size=688,
)
GATE = ("blocks/attention/memory/weight", "blocks/attention/memory/bias")
BIASES = (-3.0, -4.0, -5.0, -6.0, -7.0, -8.0, -9.0)


def with_bias(parameters: dict, bias: float) -> dict:
    """The parameters with every gate's bias at `bias` (its matrix stays zero)."""
    return parameters | {GATE[1]: jnp.full_like(parameters[GATE[1]], bias)}


def main() -> None:
    config = with_memory(CONFIG, MemoryConfig())
    tokens = jax.random.randint(jax.random.key(1), (8, 256), 0, CONFIG.vocab_size)
    parameters = to_parameters(jax.jit(lambda key: Decoder(config, key))(jax.random.key(0)))
    attention = {name: a for name, a in parameters.items() if name not in GATE}
    before = to_model(dataclasses.replace(config, memory=None), attention)(tokens)

    @jax.jit
    def loss(gate: dict, others: dict) -> jax.Array:
        model = to_model(config, others | gate)
        logits = model.logits(model.hidden(tokens))[:, :-1]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], -1)
        return -chosen.mean()

    def gradient_norms(bias: float) -> dict[str, float]:
        whole = with_bias(parameters, bias)
        gate = {name: whole.pop(name) for name in GATE}
        found = jax.grad(loss)(gate, whole)
        return {name: float(jnp.linalg.norm(found[name].ravel())) for name in GATE}

    half = gradient_norms(0.0)
    print(
        "| bias | g | max \\|Δ logit\\| | RMS Δ / RMS logit | KL, nats | matrix gradient | "
        "bias gradient |\n|---|---|---|---|---|---|---|"
    )
    for bias in BIASES:
        after = to_model(config, with_bias(parameters, bias))(tokens)
        moved = after - before
        rms = jnp.sqrt(jnp.mean(moved**2) / jnp.mean(before**2))
        log_p, log_q = jax.nn.log_softmax(before), jax.nn.log_softmax(after)
        kl = jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), -1))
        kept = {name: value / half[name] for name, value in gradient_norms(bias).items()}
        print(
            f"| {bias:g} | {jax.nn.sigmoid(bias):.5f} | {jnp.abs(moved).max():.4f} | {rms:.2%} | "
            f"{kl:.1e} | {kept[GATE[0]]:.2%} | {kept[GATE[1]]:.2%} |"
        )


if __name__ == "__main__":
    main()
