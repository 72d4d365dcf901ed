"""Who started this process, by its environment alone: whether there are others, and which GPUs are its own. No JAX.

JAX finds the coordinator, the number of processes and this one's number by itself (`jax/_src/clusters`). Two things it
leaves open: whether to ask it at all, as a lone process needs no coordinator, and how many GPUs a process drives.
"""

import importlib.util
import os
import re
import urllib.request
from pathlib import Path

from moco_jax.config import ConfigError

METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints"
DEVICES = Path("/dev")


def several_processes() -> bool:
    """Whether a launcher that JAX knows started several processes: Slurm, Open MPI, a TPU pod or GKE."""
    environ = os.environ
    many = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE")
    inside = "SLURM_STEP_NODELIST" in environ or "OMPI_COMM_WORLD_SIZE" in environ
    gke_job = "JOB_COMPLETION_INDEX" in environ and "KUBERNETES_SERVICE_HOST" in environ
    return gke_job or (inside and any(_number(name, 1) > 1 for name in many)) or _tpu_hosts() > 1


def check_given(given: dict[str, str]) -> None:
    """Raises ConfigError where JAX's three variables do not say which of how many processes this is."""
    (_, address), (name, count), (other, index) = given.items()
    if not re.fullmatch(r".+:\d+", address):
        raise ConfigError(f"JAX_COORDINATOR_ADDRESS must be HOST:PORT of the first process, not {address!r}")
    if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
        raise ConfigError(
            f"{name}={count} and {other}={index}: of N processes the first is 0 and the last N - 1, each with its own"
        )


def local_device_ids() -> list[int] | None:
    """The GPUs of this process, numbered among those it sees, for `jax.distributed.initialize`; None: as JAX does it.

    Left to itself JAX gives a process of Slurm or Open MPI one GPU, that of its local number: one process on a node of
    eight would train on one and leave seven idle, without a word; and where a launcher shows each process its own GPU
    only, all but the first would ask for one that is not there. JAX_LOCAL_DEVICE_IDS decides where it is set. Raises
    ConfigError where the environment does not say which GPUs are whose.
    """
    environ = os.environ
    if "JAX_LOCAL_DEVICE_IDS" in environ or environ.get("JAX_PLATFORMS") in ("cpu", "tpu"):
        return None
    if "SLURM_STEP_NODELIST" in environ and "SLURM_LOCALID" in environ:
        launcher, tasks, index = "Slurm", _slurm_tasks(), int(environ["SLURM_LOCALID"])
    elif "OMPI_COMM_WORLD_LOCAL_SIZE" in environ:
        launcher, tasks = "Open MPI", _number("OMPI_COMM_WORLD_LOCAL_SIZE", 1)
        index = _number("OMPI_COMM_WORLD_LOCAL_RANK", 0)
    else:
        return None
    visible = _visible()
    gpus = _number("SLURM_GPUS_ON_NODE", 0) or visible or _device_files()
    if not gpus or visible == 0:
        return None
    if tasks == 1:
        return list(range(gpus if visible is None else visible))
    share = gpus // tasks if tasks else 0
    if share and gpus % tasks == 0 and visible in (None, gpus):
        return list(range(index * share, (index + 1) * share))
    if share and visible == share:  # each is shown its own: numbered from 0 again
        return list(range(share))
    raise ConfigError(
        f"{launcher} started {tasks or 'an unknown number of'} processes on this node of {gpus} GPUs"
        + (f", {visible} of them visible here" if visible not in (None, gpus) else "")
        + ": which are whose is not said; start one per node or one per GPU, or set JAX_LOCAL_DEVICE_IDS for each "
        "process (0,1,... among those it sees), or JAX_PLATFORMS=cpu"
    )


def _slurm_tasks() -> int:
    """Tasks of this step on this node; 0 where they are not spread evenly, or nothing says it."""
    tasks, nodes = _number("SLURM_NTASKS", 0), _number("SLURM_STEP_NUM_NODES", 0)
    if nodes:
        return 0 if tasks % nodes else tasks // nodes
    return _number("SLURM_NTASKS_PER_NODE", 0)


def _visible() -> int | None:
    """GPUs that this process sees, by CUDA's own variable; None where it is not set."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return None
    return len([name for name in listed.split(",") if re.match(r"\d|GPU-|MIG-", name.strip())])  # not NoDevFiles


def _device_files() -> int:
    """NVIDIA's GPUs in this machine: all are seen where the launcher manages none."""
    return len([file for file in DEVICES.glob("nvidia*") if re.fullmatch(r"nvidia\d+", file.name)])


def _tpu_hosts() -> int:
    """Hosts of the TPU slices that this one belongs to; 1 where there is no TPU.

    GKE says it in the environment, Compute Engine by its metadata server. JAX sets TPU_SKIP_MDS_QUERY on machines
    without a TPU, when it is imported.
    """
    names = os.environ.get("TPU_PROCESS_ADDRESSES") or os.environ.get("TPU_WORKER_HOSTNAMES")
    if names is None and "TPU_SKIP_MDS_QUERY" not in os.environ and importlib.util.find_spec("libtpu") is not None:
        request = urllib.request.Request(METADATA, headers={"Metadata-Flavor": "Google"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                names = answer.read().decode()
        except OSError:  # no Compute Engine
            names = None
    return max(len((names or "").split(",")), _number("MEGASCALE_NUM_SLICES", 1))


def _number(name: str, default: int) -> int:
    """A whole number of the environment; raises ConfigError for anything else."""
    text = os.environ.get(name) or str(default)
    if not text.isdigit():
        raise ConfigError(f"{name} must be a whole number, not {text!r}")
    return int(text)
