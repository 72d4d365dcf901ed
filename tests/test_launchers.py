"""Who started a process: what the environments of launchers mean, and what JAX is told of them."""

import io
import os

import pytest

from moco_jax import launchers, parallel
from moco_jax.config import ConfigError

PREFIXES = ("SLURM_", "OMPI_", "JAX_COORD", "JAX_NUM_PROC", "JAX_PROCESS", "JAX_LOCAL", "JAX_PLATFORMS", "CUDA_VIS")
PREFIXES += ("TPU_", "MEGASCALE_", "KUBERNETES_", "JOB_COMPLETION")


def slurm(tasks, nodes, index=0, **more):
    """What `srun` sets for a task of a job of so many tasks and nodes."""
    step = {"SLURM_JOB_ID": 4242, "SLURM_STEP_NODELIST": "node[01-99]", "SLURM_STEP_NUM_NODES": nodes}
    return step | {"SLURM_NTASKS": tasks, "SLURM_PROCID": index, "SLURM_LOCALID": index} | more


def mpi(tasks, here, index=0, **more):
    """What `mpirun` sets for a process of so many, and so many on this machine."""
    names = ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK")
    return dict(zip(names, (tasks, here, index), strict=True)) | more


def seen(*gpus):
    return {"CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus))}


EIGHT = seen(*range(8)) | {"SLURM_GPUS_ON_NODE": 8}
ADDRESS = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "2"}


@pytest.fixture
def start(monkeypatch, tmp_path):
    """`parallel.start` in the environment of a launcher: what JAX was told, None where it was not asked."""
    for name in [n for n in os.environ if n.startswith(PREFIXES)]:
        monkeypatch.delenv(name)
    told = []
    monkeypatch.setattr("jax.distributed.initialize", lambda **arguments: told.append(arguments))
    monkeypatch.setattr(launchers, "DEVICES", tmp_path)

    def run(environment, files=0):
        for i in range(files):
            (tmp_path / f"nvidia{i}").touch()
        (tmp_path / "nvidiactl").touch()
        for name, value in environment.items():
            monkeypatch.setenv(name, str(value))
        parallel.start()
        assert len(told) <= 1
        for arguments in told:
            assert arguments.pop("heartbeat_timeout_seconds") == arguments.pop("shutdown_timeout_seconds") == 60
        return told[0] if told else None

    return run


@pytest.mark.parametrize(
    ("environment", "files"),
    [
        ({}, 8),
        (slurm(1, 1, **EIGHT), 8),  # one process on one node drives all of its GPUs as it is
        ({"SLURM_JOB_ID": 1, "SLURM_NTASKS": 4}, 8),  # in a job's script, not under srun
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, 0),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, 0),  # any pod
    ],
)
def test_a_lone_process_needs_no_coordinator(start, environment, files):
    """And opens no port."""
    assert start(environment, files) is None


@pytest.mark.parametrize(
    ("environment", "files", "ids"),
    [
        # One process for each node: all of its GPUs, where JAX would take the first and leave seven idle.
        (slurm(4, 4, **EIGHT), 0, [*range(8)]),
        (slurm(4, 4, **seen(*range(8))), 0, [*range(8)]),
        (slurm(4, 4, SLURM_GPUS_ON_NODE=8), 0, [*range(8)]),
        (slurm(4, 4, SLURM_GPUS_ON_NODE=2), 8, [0, 1]),  # device files of GPUs that are another job's
        (slurm(4, 4), 8, [*range(8)]),  # Slurm manages no GPUs here
        (slurm(4, 4, **seen(4, 5, 6, 7), SLURM_GPUS_ON_NODE=4), 8, [0, 1, 2, 3]),  # numbered among those it sees
        (slurm(4, 4, **seen(2, 3), SLURM_GPUS_ON_NODE=8), 8, [0, 1]),  # somebody chose two of them
        (slurm(2, 2, **seen("GPU-8f1d", "GPU-77aa")), 0, [0, 1]),
        (slurm(4, 0, SLURM_NTASKS_PER_NODE=1, **EIGHT), 0, [*range(8)]),
        # One process for each GPU: what JAX does.
        (slurm(16, 2, 3, **EIGHT), 0, [3]),
        (slurm(16, 2, 3), 8, [3]),
        # ... each bound to its own by --gpus-per-task=1: JAX would ask for a fourth GPU of one.
        (slurm(16, 2, 3, **seen(0), SLURM_GPUS_ON_NODE=8), 8, [0]),
        # Two processes with four each.
        (slurm(4, 2, 1, **EIGHT), 0, [4, 5, 6, 7]),
        (slurm(4, 2, 1, **seen(0, 1, 2, 3), SLURM_GPUS_ON_NODE=8), 0, [0, 1, 2, 3]),
        # None that matter.
        (slurm(4, 4), 0, None),
        (slurm(4, 4, CUDA_VISIBLE_DEVICES="NoDevFiles"), 8, None),
        (slurm(4, 4, CUDA_VISIBLE_DEVICES=""), 8, None),
        (slurm(8, 4, JAX_PLATFORMS="cpu", **EIGHT), 8, None),
        (slurm(3, 2, JAX_LOCAL_DEVICE_IDS="0,1", **EIGHT), 8, None),  # JAX reads it itself
        (mpi(2, 1), 8, [*range(8)]),
        (mpi(16, 8, 5, **seen(*range(8))), 0, [5]),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, 0, None),
        ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, 0, None),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"}, 8, None),
    ],
)
def test_every_process_of_several_gets_its_gpus(start, environment, files, ids):
    """All GPUs of a node are somebody's, and nobody's twice."""
    assert start(environment, files) == {"local_device_ids": ids}


def test_what_is_said_outright_is_taken(start):
    """The three variables of JAX, and under Slurm with them one process for each node as well."""
    told = start(ADDRESS | slurm(4, 4, **EIGHT))
    assert told.pop("local_device_ids") == [*range(8)]
    assert told == {"coordinator_address": "a:1", "num_processes": 4, "process_id": 2}


def test_plain_hosts_keep_all_their_devices(start):
    """Without a launcher nothing is hidden."""
    assert start(ADDRESS, 8)["local_device_ids"] is None


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (slurm(6, 2, **EIGHT), "Slurm started 3 processes on this node of 8 GPUs: which are whose is not said"),
        (slurm(3, 2, **EIGHT), "an unknown number of processes on this node of 8 GPUs"),
        (slurm(16, 2, **seen(0, 1), SLURM_GPUS_ON_NODE=8), "8 processes on this node of 8 GPUs, 2 of them visible"),
        (slurm(16, 1, **EIGHT), "16 processes on this node of 8 GPUs"),
        (mpi(6, 3, **seen(*range(8))), "Open MPI started 3 processes on this node of 8 GPUs"),
        (slurm(4, 4, SLURM_GPUS_ON_NODE="many"), "SLURM_GPUS_ON_NODE must be a whole number, not 'many'"),
    ],
)
def test_what_cannot_be_known_is_refused(start, environment, message):
    """In words that say what to set."""
    with pytest.raises(ConfigError, match=message) as error:
        start(environment)
    assert "whole number" in message or "set JAX_LOCAL_DEVICE_IDS" in str(error.value)


@pytest.mark.parametrize(("answer", "several"), [(b"t1v-0,t1v-1,t1v-2,t1v-3", True), (b"t1v-0", False), (None, False)])
def test_a_tpu_pod_of_compute_engine_is_asked_for(start, monkeypatch, answer, several):
    """Its environment says nothing; its metadata server names the hosts, and does not answer elsewhere."""

    def urlopen(request, timeout):
        assert request.full_url.endswith("/worker-network-endpoints") and request.headers
        if answer is None:
            raise OSError("no such host")
        return io.BytesIO(answer)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "libtpu")
    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    assert start({}) == ({"local_device_ids": None} if several else None)


def test_a_machine_without_a_tpu_asks_nobody(start, monkeypatch):
    """JAX has looked for chips before, and left a note."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "libtpu")
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: pytest.fail("it asked"))
    assert start({"TPU_SKIP_MDS_QUERY": "1"}) is None
