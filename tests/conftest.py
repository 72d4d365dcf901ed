"""Eight CPU devices, no implicit rank promotion, and a warning raised in moco_jax is an error."""

import os

# Collectives of fake devices wait for each other in one pool of threads; with as few as cores they can deadlock.
os.environ.setdefault("NPROC", "32")
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def float64():
    """Everything in double precision for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
