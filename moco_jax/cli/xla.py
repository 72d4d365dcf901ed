"""What XLA is told before JAX is imported, where it would choose slowly."""

import importlib.util
import os
from importlib import metadata

# YNNPACK, which jaxlib takes for convolutions on CPU, needs up to 2.5 times as long as Eigen for gradients of weights.
NAME, VALUE = "--xla_cpu_experimental_ynn_fusion_type", "-individual_convolution"
KNOWN_TO = ("0.10.", "0.11.", "0.12.")  # of jaxlib, which ends the process at a flag that it does not know


def flags_with_ours(given: str) -> str:
    """XLA_FLAGS `given` and, where JAX will find nothing but the CPU, ours; who gives the same one has the last word.

    Other backends read XLA_FLAGS as well, and need not know all that jaxlib knows. What does not begin with a dash is
    the path of a file of flags, which takes nothing beside it.
    """
    if given.strip() and not given.lstrip().startswith("-"):
        return given
    for_cpu = os.environ.get("JAX_PLATFORMS", "") == "cpu" or not accelerators()
    known = metadata.version("jaxlib").startswith(KNOWN_TO)
    return f"{given} {NAME}={VALUE}".strip() if for_cpu and known and NAME not in given else given


def accelerators() -> list[str]:
    """Packages that bring JAX another backend, of those that are installed."""
    return [name for name in ("jax_plugins", "libtpu") if importlib.util.find_spec(name)]
