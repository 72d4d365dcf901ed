"""Projection heads: from pooled features (n, D) to what the loss compares (n, C)."""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
from jax.typing import DTypeLike


def linear(features: int, fan_in: int, *, dtype: DTypeLike, name: str) -> nn.Dense:
    """A dense layer that starts as `torch.nn.Linear` does: weight and bias uniform in +-1/sqrt(fan_in)."""
    bound = 1 / math.sqrt(fan_in)

    def uniform(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return nn.Dense(features, dtype=dtype, param_dtype=dtype, kernel_init=uniform, bias_init=uniform, name=name)


class Linear(nn.Module):
    """MoCo v1's head: one dense layer (arXiv:1911.05722, section 3.3)."""

    dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(n, D) to (n, dim), not normalised; the same in training and evaluation."""
        del train
        return linear(self.dim, x.shape[-1], dtype=self.dtype, name="fc")(x)


class Mlp(nn.Module):
    """MoCo v2's head: dense of the backbone's width, ReLU, dense; no batch norm (arXiv:2003.04297, section 2)."""

    dim: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """(n, D) to (n, dim) through D hidden units, not normalised; the same in training and evaluation."""
        del train
        hidden = nn.relu(linear(x.shape[-1], x.shape[-1], dtype=self.dtype, name="fc_0")(x))  # (n, D)
        return linear(self.dim, hidden.shape[-1], dtype=self.dtype, name="fc_2")(hidden)


HEADS: dict[str, Callable[..., nn.Module]] = {"linear": Linear, "mlp": Mlp}
