"""What XLA is told before JAX is imported, where it would choose slowly."""

import importlib.util
import os
from importlib import metadata

# YNNPACK, which jaxlib takes for convolutions on CPU, needs less of one core than Eigen, but spreads its work over
# several so badly that a training step takes longer: `benchmarks/cpu_step.py`.
NAME, VALUE = "--xla_cpu_experimental_ynn_fusion_type", "-individual_convolution"
KNOWN_TO = ("0.10.", "0.11.", "0.12.")  # of jaxlib, which ends the process at a flag that it does not know


def flags_with_ours(given: str) -> str:
    """XLA_FLAGS `given` and, where JAX will find nothing but a CPU of several cores, ours, unless it is in `given`.

    Other backends read XLA_FLAGS as well, and need not know all that jaxlib knows. What does not begin with a dash is
    the path of a file of flags, which takes nothing beside it.
    """
    if given.strip() and not given.lstrip().startswith("-"):
        return given
    for_cpu = os.environ.get("JAX_PLATFORMS", "") == "cpu" or not accelerators()
    several = cores() > int(os.environ.get("JAX_NUM_CPU_DEVICES", "1"))  # for a device
    ours = for_cpu and several and _known() and NAME not in given
    return f"{given} {NAME}={VALUE}".strip() if ours else given


def cores() -> int:
    """Cores that this process may use; as `parallel.host_cores`, which imports JAX."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _known() -> bool:
    try:
        return metadata.version("jaxlib").startswith(KNOWN_TO)
    except metadata.PackageNotFoundError:  # built from source and not installed
        return False


def accelerators() -> list[str]:
    """What brings JAX another backend, of what is installed: packages, and entry points of packages."""
    packages = [name for name in ("jax_plugins", "libtpu") if importlib.util.find_spec(name)]
    return packages + [point.name for point in metadata.entry_points(group="jax_plugins")]
