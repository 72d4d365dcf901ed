"""Momentum Contrast (MoCo) in JAX and Flax: pretraining of vision encoders without labels."""

from typing import Any

__version__ = "0.1.0"


def train(*args: Any, **kwargs: Any) -> Any:
    """Pretrain an encoder; see `moco_jax.pretrain.train`, which this imports when called."""
    from moco_jax import pretrain

    return pretrain.train(*args, **kwargs)


def load_encoder(*args: Any, **kwargs: Any) -> Any:
    """A frozen encoder from a run's folder; see `moco_jax.evaluation.encoder.load_encoder`."""
    from moco_jax.evaluation import encoder

    return encoder.load_encoder(*args, **kwargs)
