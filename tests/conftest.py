"""Eight CPU devices, no implicit rank promotion, and a warning raised in moco_jax is an error."""

import gc
import os
import signal
from pathlib import Path

from moco_jax.cli import xla

# Collectives of fake devices wait for each other in one pool of threads; with as few as cores they can deadlock.
os.environ.setdefault("NPROC", "32")
os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile much and run little: without LLVM's optimisation a small ResNet compiles in a quarter of the time.
# XLA_FLAGS=--xla_backend_optimization_level=3 tests what users run; the rest is what commands tell XLA.
os.environ["XLA_FLAGS"] = xla.flags_with_ours(
    f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}"  # the last one holds
)
# Tests compile the same programs again and again, in several processes: what took a while is kept in pytest's cache.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache/jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


MAPS = Path("/proc/self/maps")  # of Linux
MANY = 20_000


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps():
    """Forget compiled programs between modules: they hold memory maps, and past 65,530 a compile on Linux segfaults."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def float64():
    """Everything in double precision for one test."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)


@pytest.fixture
def interruptible():
    """A shell ignores Ctrl-C for its jobs in the background, and what they start inherits that: not in this test."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
