"""Momentum Contrast (MoCo) in JAX and Flax: pretraining of vision encoders without labels."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moco_jax.evaluation.loading import load_encoder
    from moco_jax.pretrain import train

__version__ = "0.1.0"
__all__ = ["__version__", "load_encoder", "train"]


def __getattr__(name: str) -> Any:
    """The public functions, imported when asked for: importing the package alone must stay light."""
    if name == "train":
        from moco_jax.pretrain import train

        return train
    if name == "load_encoder":
        from moco_jax.evaluation.loading import load_encoder

        return load_encoder
    raise AttributeError(f"module 'moco_jax' has no attribute {name!r}")
