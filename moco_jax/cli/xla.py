"""What XLA is told before JAX is imported, where it would choose slowly."""

import importlib.util
import os
from importlib import metadata

# YNNPACK, which jaxlib takes for convolutions on CPU, needs less of one core than Eigen, but spreads its work over
# several so badly that a training step takes longer: `benchmarks/cpu_step.py`.
EIGEN = ("--xla_cpu_experimental_ynn_fusion_type", "-individual_convolution")
# XLA:CPU drops barriers before it fuses, and so computes again what they keep: `models/resnet.py`, `convolved`.
BARRIERS = ("--xla_disable_hlo_passes", "cse_barrier_expander")
KNOWN_TO = ("0.10.", "0.11.", "0.12.")  # of jaxlib, which ends the process at a flag that it does not know


def flags_with_ours(given: str) -> str:
    """XLA_FLAGS `given` and, where JAX will find nothing but a CPU, ours, of which none is in `given`.

    Eigen is asked for where a device has several cores. Other backends read XLA_FLAGS as well, may not know what jaxlib
    knows, and cannot compile barriers. What does not begin with a dash is the path of a file of flags, which takes
    nothing beside it.
    """
    if given.strip() and not given.lstrip().startswith("-"):
        return given
    for_cpu = os.environ.get("JAX_PLATFORMS", "") == "cpu" or not accelerators()
    if not for_cpu or not _known():
        return given
    several = cores() > int(os.environ.get("JAX_NUM_CPU_DEVICES", "1"))  # for a device
    ours = [BARRIERS, *([EIGEN] if several else [])]
    return " ".join([given, *(f"{name}={value}" for name, value in ours if name not in given)]).strip()


def cores() -> int:
    """Cores that this process may use; as `parallel.host_cores`, which imports JAX."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _known() -> bool:
    try:
        return metadata.version("jaxlib").startswith(KNOWN_TO)
    except metadata.PackageNotFoundError:  # built from source and not installed
        return False


def accelerators() -> list[str]:
    """What brings JAX another backend: packages, entry points of packages, and libraries that variables name."""
    packages = [name for name in ("jax_plugins", "libtpu") if importlib.util.find_spec(name)]
    points = [point.name for point in metadata.entry_points(group="jax_plugins")]
    named = [os.environ.get(name) for name in ("PJRT_NAMES_AND_LIBRARY_PATHS", "TPU_LIBRARY_PATH")]
    return packages + points + list(filter(None, named))
