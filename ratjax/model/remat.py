"""What the backward pass finds kept from the forward pass, and what it computes again."""

from collections.abc import Callable

import jax

from ratjax.sharding import active_mesh, keep_no_gathers

# What a kernel puts out for its gradient cannot be named from here, so kernels are known by their
# primitives: Triton's and Pallas's, the wrapper of those with a batching rule, cuDNN's attention.
KERNELS = (
    "triton_kernel_call",
    "pallas_call",
    "custom_vmap_call",
    "dot_product_attention_fwd_wrapper",
)
PROJECTIONS = "projections"

_named = jax.checkpoint_policies.save_only_these_names(PROJECTIONS)
_products = jax.checkpoint_policies.dots_with_no_batch_dims_saveable


def _keeps_attention(primitive, *args, **kwargs) -> bool:
    return primitive.name in KERNELS or _named(primitive, *args, **kwargs)


def _keeps_products(primitive, *args, **kwargs) -> bool:
    return primitive.name in KERNELS or _products(primitive, *args, **kwargs)


POLICIES = {
    "none": None,
    "save_products": _keeps_products,
    "save_attention": _keeps_attention,
    "full": jax.checkpoint_policies.nothing_saveable,
}


def remat(body: Callable, name: str) -> Callable:
    """The body of a loop over layers, with its intermediate results kept as `name` says.

    Args:
      body: a layer.
      name: `ModelConfig.remat`.
    """
    policy = POLICIES[name]
    if policy is None and active_mesh() is not None:
        policy = keep_no_gathers
    if policy is None:
        return body
    # The loop keeps the passes apart: the compiler could not merge them anyway.
    return jax.checkpoint(body, policy=policy, prevent_cse=False)
