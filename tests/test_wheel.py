"""The wheel alone, in an empty folder, does what the clone does."""

import os
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import moco_jax
from tests.snippets import snippets

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "--config.data.split=train[:256]",
    "--config.model.width=4",
    "--config.queue.size=128",
    "--config.train.epochs=1",
)
SMALL += ("--config.eval.every_epochs=0", "--config.leak.every_epochs=0")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from the clone with the build tools that are installed here."""
    out = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", f"--outdir={out}", ROOT, cwd=out)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def moco_jax_command(wheel, tmp_path_factory):
    """`moco-jax` of a fresh environment that holds the wheel and finds its dependencies here, not on the network."""
    home = tmp_path_factory.mktemp("env")
    _run(sys.executable, "-m", "venv", "--without-pip", home, cwd=home)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    pip = (sys.executable, "-m", "pip", f"--python={home}/bin/python", "install")
    # --ignore-installed: an editable install of the clone may be among the dependencies, and is not what is tested.
    _run(*pip, "--no-deps", "--no-index", "--ignore-installed", wheel, cwd=home)
    return home / "bin" / "moco-jax"


@pytest.mark.slow
def test_wheel_holds_the_package_and_the_pages(wheel):
    """Types, license and every config page are inside; nothing that belongs to the clone is."""
    names = set(zipfile.ZipFile(wheel).namelist())
    pages = {f"moco_jax/configs/{p.name}" for p in (ROOT / "configs").glob("*.py")}
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "moco_jax").rglob("*.py")}
    info = f"moco_jax-{moco_jax.__version__}.dist-info"
    assert pages and pages | modules | {"moco_jax/py.typed", f"{info}/licenses/LICENSE"} <= names
    assert {n.split("/")[0] for n in names} == {"moco_jax", info}


@pytest.mark.slow
def test_train_and_evaluate_in_an_empty_folder(moco_jax_command, tmp_path):
    """A dry run leaves nothing; a page found by name trains, a second call finds it complete; it is evaluated."""
    where = _run(moco_jax_command.parent / "python", "-c", "import moco_jax; print(moco_jax.__file__)", cwd=tmp_path)
    assert where.startswith(str(moco_jax_command.parents[1]))

    train = (moco_jax_command, "train", "--config=digits", *SMALL, "--workdir=run")
    assert "hours" in _run(*train, "--dry_run", cwd=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} <= {".jax"}  # the cache that this test asks for
    assert "done in" in _run(*train, cwd=tmp_path)
    assert "complete already" in _run(*train, cwd=tmp_path)

    probe = (
        "--config=linear_digits",
        "--config.epochs=4",
        "--config.milestones=(2, 3)",
        "--checkpoint=run",
        "--workdir=linear",
    )
    table = _run(moco_jax_command, "eval-linear", *probe, cwd=tmp_path)
    assert all(row in table for row in ("untrained encoder: top-1", "trained encoder: top-1"))

    _run(moco_jax_command, "features", "run", "--split=test[:20]", "--output=f.npz", cwd=tmp_path)
    with np.load(tmp_path / "f.npz") as arrays:
        assert set(arrays) == {"features", "names", "ids", "labels", "class_names"}
        assert arrays["features"].shape == (20, 16) and np.isfinite(arrays["features"]).all()
    assert sorted(p.name for p in tmp_path.iterdir() if p.name not in ("tfds", ".jax")) == ["f.npz", "linear", "run"]


@pytest.mark.long
def test_what_is_said_of_objects_of_ones_own_runs(moco_jax_command, tmp_path):
    """Every snippet of docs/extend.md, in the wheel's environment; and a run without its object is refused in words."""
    python, page = moco_jax_command.parent / "python", ROOT / "docs" / "extend.md"
    said = _run(python, "-P", ROOT / "tests" / "snippets.py", page, cwd=tmp_path)
    headings = [line.split(": ")[1].split(" (")[0] for line in said.splitlines() if line.startswith("ran: ")]
    assert headings == [heading for heading, _ in snippets(page.read_text())][1:] and len(headings) == 6
    assert "runs/encoder was trained with encoder 'small8+mlp16', not 'resnet_tiny" in said
    assert "runs/source holds a run with source 'frames', this one has 'bands': give the same object as source=" in said
    assert "runs/pairs holds a run with pairs 'same_place', this one has 'of the config': give the same obj" in said
    assert '"parameter_norm": ' in said


def _run(*command, cwd):
    """What a command prints; its errors where it fails. Nothing of the clone is on its path."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    env = {**kept, "TFDS_DATA_DIR": str(Path(cwd, "tfds")), "JAX_PLATFORMS": "cpu"}
    env["XLA_FLAGS"] = "--xla_backend_optimization_level=1"  # as in conftest: much is compiled and little run
    env |= {"JAX_COMPILATION_CACHE_DIR": str(Path(cwd, ".jax"))}  # runs of one shape compile once
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
