"""What a model is: shapes, and every choice the paper leaves open about its memory."""

import dataclasses

from ratjax.errors import ConfigError, check_choice, check_positive


@dataclasses.dataclass(frozen=True)
class MemoryConfig:
    """The exponentially decaying memory over keys and values (paper, Eq. 1).

    `k~_t = g_t k~_{t-1} + (1 - g_t) k_t`, the same for v with the same gate, before RoPE.

    Attributes:
      gate_input: what the gate reads. `normalized`: the tensor that feeds q, k and v,
        RMS-normalised without weights (OLMo2's residual stream is not normalised and its
        scale grows with depth). `raw`: that tensor itself (released RAT+, whose layers are
        pre-norm).
      gate_bias: whether the gate's projection has a bias. Released RAT+ has none.
      init: the gate at the start. `near_identity`: zero matrix and bias `init_bias`, for a
        trained model that gains a memory. `normal`: N(0, 0.02^2), bias 0 (released RAT+):
        g starts at 0.5. `log_uniform`: small matrix, and biases that spread the effective
        lengths 1 / (1 - g) log-uniformly over 2..`init_max_length` (RAT, 2507.04416).
        `identity`: zero matrix and bias minus infinity, so that g = 0 and the model equals
        plain attention; gradients cannot reach such a gate, it exists for tests.
      init_bias: bias of `near_identity`; g = sigmoid(init_bias).
      init_max_length: longest effective length, in tokens, that `log_uniform` starts with.
      place: `after_k_norm`: the recurrence reads normalised keys. `before_k_norm`: the norm
        is applied to the memory's keys. Without QK-norm the two are the same.
      reset_at_documents: whether packed documents restart the memory. As published: no.
    """

    gate_input: str = "normalized"
    gate_bias: bool = True
    init: str = "near_identity"
    init_bias: float = -6.0
    init_max_length: int = 64
    place: str = "after_k_norm"
    reset_at_documents: bool = False

    def __post_init__(self):
        check_choice("memory.gate_input", self.gate_input, ("normalized", "raw"))
        check_choice(
            "memory.init", self.init, ("near_identity", "normal", "log_uniform", "identity")
        )
        check_choice("memory.place", self.place, ("after_k_norm", "before_k_norm"))
        if self.init_max_length <= 2:
            raise ConfigError("memory.init_max_length", self.init_max_length, "must be above 2")
        if self.init != "normal" and not self.gate_bias:
            raise ConfigError(
                "memory.gate_bias",
                self.gate_bias,
                f"memory.init={self.init!r} sets the gate by its bias; use init='normal' or a bias",
            )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A decoder. OLMo2 and released RAT+ are settings of these fields (see `presets`).

    Attributes:
      vocab_size: rows of the embedding, V.
      hidden_size: width of the residual stream, M.
      num_layers: blocks, L.
      num_heads: query heads, H.
      num_kv_heads: key/value heads, G; divides `num_heads`.
      head_dim: channels of a head, D; even, for RoPE.
      intermediate_size: width of the feed-forward layer, F.
      mlp: `swiglu` (OLMo2) or `gelu` (RAT+; exact GELU, two matrices).
      norm: `post`: x + norm(f(x)) (OLMo2). `pre`: x + f(norm(x)) (RAT+).
      qk_norm: RMSNorm over the whole projected width of q and of k, before the heads split.
      output_gate: attention's output times sigmoid of a projection (RAT+).
      tie_embeddings: the head is the embedding's transpose.
      rope_theta: RoPE's base; half-split convention.
      norm_eps: epsilon of every RMSNorm.
      init_std: standard deviation of initial weights.
      qk_init: `independent`, or `equal`: each layer's key projection starts as a copy of its
        query projection (with grouped heads, of the group's first query head), which lets
        tokens find their own earlier occurrences from the start. Used by the tiny models.
      previous_token_embedding: adds a second embedding of the previous token at the input,
        so that induction needs one layer less. Used by the tiny models, in both backbones.
      previous_token_init: the second embedding at the start: `independent`, or a `copy` of the
        first, with which the tiny models learn to copy sooner.
      memory: the decaying memory, or None for plain attention. The only field in which a
        matched pair differs.
      dtype: the compute dtype; parameters are float32.
      remat: what the backward pass recomputes. `none`: nothing; `save_products`: all but what
        matrix products and kernels gave, so norms, rotations and activations, which costs
        little; `save_attention`: all but the projected q, k, v and gates and what attention's
        and the memory's kernels gave; `full`: everything but each layer's input.
      unroll: layers that one turn of the loop over layers holds. More compile longer and may
        run faster: tiny models on CPUs gain.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    mlp: str = "swiglu"
    norm: str = "post"
    qk_norm: bool = True
    output_gate: bool = False
    tie_embeddings: bool = False
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-6
    init_std: float = 0.02
    qk_init: str = "independent"
    previous_token_embedding: bool = False
    previous_token_init: str = "independent"
    memory: MemoryConfig | None = None
    dtype: str = "float32"
    remat: str = "none"
    unroll: int = 1

    def __post_init__(self):
        for field in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate_size",
            "rope_theta",
            "norm_eps",
            "unroll",
        ):
            check_positive(f"model.{field}", getattr(self, field))
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                "model.num_kv_heads",
                self.num_kv_heads,
                f"must divide model.num_heads={self.num_heads}",
            )
        if self.head_dim % 2:
            raise ConfigError("model.head_dim", self.head_dim, "must be even: RoPE rotates pairs")
        check_choice("model.mlp", self.mlp, ("swiglu", "gelu"))
        check_choice("model.norm", self.norm, ("pre", "post"))
        check_choice("model.qk_init", self.qk_init, ("independent", "equal"))
        check_choice("model.previous_token_init", self.previous_token_init, ("independent", "copy"))
        check_choice("model.dtype", self.dtype, ("float32", "bfloat16"))
        check_choice("model.remat", self.remat, ("none", "save_products", "save_attention", "full"))

    @property
    def queries_per_kv_head(self) -> int:
        return self.num_heads // self.num_kv_heads
