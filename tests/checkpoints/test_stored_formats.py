"""A checkpoint that a release has written opens in every later one."""

import hashlib
import json
import tarfile

import jax.numpy as jnp
import pytest

import moco_jax
from moco_jax.checkpoints.store import Store
from moco_jax.cli import train
from moco_jax.state import FORMAT
from tests.checkpoints.make_stored import MORE, STOP, STORED, TOTAL, arguments

DIGESTS = {  # a line is added for a new format; none is changed
    "format_1_end_to_end.tar.gz": "a35a83c249095917",
    "format_1_memory_bank.tar.gz": "634af89983687664",
    "format_1_moco.tar.gz": "277a7f5f7c1cf7bb",
}
ARCHIVES = sorted(DIGESTS)


@pytest.fixture
def run(tmp_path, request):
    """The run's folder, as the release left it."""
    with tarfile.open(STORED / request.param) as tar:
        tar.extractall(tmp_path, filter="data")
    return tmp_path / "run"


def test_stored_checkpoints_are_those_that_were_reviewed():
    """There are those of every format up to today's and of every mechanism, and none was written anew."""
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in STORED.iterdir()} == DIGESTS
    assert set(DIGESTS) == {f"format_{n}_{name}.tar.gz" for n in range(1, FORMAT + 1) for name in MORE}


@pytest.mark.parametrize("run", ARCHIVES, indirect=True)
def test_its_encoder_gives_features(run):
    """From what lies in the folder alone."""
    encoder = moco_jax.load_encoder(run)
    features = encoder(jnp.zeros((2, 8, 8, 1), jnp.uint8))
    assert features.shape == (2, 16) and bool(jnp.isfinite(features).all())


@pytest.mark.parametrize(
    "run",
    [pytest.param(a, marks=pytest.mark.slow if a == "format_1_moco.tar.gz" else pytest.mark.long) for a in ARCHIVES],
    indirect=True,
)
def test_its_run_goes_on_to_the_end(run, capsys):
    """By the command that it was begun with: every leaf of the state is read, and trained on."""
    mechanism = json.loads((run / "config.json").read_text())["config"]["mechanism"]
    assert train.main(arguments(mechanism, run.parent)) == 0
    assert f"continuing at step {STOP}" in capsys.readouterr().out
    with Store(run / "checkpoints", read_only=True) as store:
        assert store.latest() == TOTAL
