"""The wheel alone, in an empty folder, does what the clone does."""

import os
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import moco_jax

ROOT = Path(__file__).resolve().parents[1]
SMALL = (
    "--config.data.split=train[:256]",
    "--config.model.width=4",
    "--config.queue.size=128",
    "--config.train.epochs=1",
)
SMALL += ("--config.eval.every_epochs=0", "--config.leak.every_epochs=0")

pytestmark = pytest.mark.slow


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


def test_wheel_holds_the_package_and_the_pages(wheel):
    """Types, license and every config page are inside; nothing that belongs to the clone is."""
    names = set(zipfile.ZipFile(wheel).namelist())
    pages = {f"moco_jax/configs/{p.name}" for p in (ROOT / "configs").glob("*.py")}
    modules = {p.relative_to(ROOT).as_posix() for p in (ROOT / "moco_jax").rglob("*.py")}
    info = f"moco_jax-{moco_jax.__version__}.dist-info"
    assert pages and pages | modules | {"moco_jax/py.typed", f"{info}/licenses/LICENSE"} <= names
    assert {n.split("/")[0] for n in names} == {"moco_jax", info}


def test_train_and_evaluate_in_an_empty_folder(moco_jax_command, tmp_path):
    """A page found by name trains, a second call finds the run complete, and its encoder is evaluated."""
    where = _run(moco_jax_command.parent / "python", "-c", "import moco_jax; print(moco_jax.__file__)", cwd=tmp_path)
    assert where.startswith(str(moco_jax_command.parents[1]))

    train = (moco_jax_command, "train", "--config=digits", *SMALL, "--workdir=run")
    assert "done in" in _run(*train, cwd=tmp_path)
    assert "complete already" in _run(*train, cwd=tmp_path)

    probe = ("--config=linear_digits", "--config.draws=2", "--checkpoint=run", "--workdir=linear")
    table = _run(moco_jax_command, "eval-linear", *probe, cwd=tmp_path)
    assert all(row in table for row in ("raw pixels", "untrained encoder", "trained encoder"))
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "tfds") == ["linear", "run"]


def _run(*command, cwd):
    """What a command prints; its errors where it fails. Nothing of the clone is on its path."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    env = {**kept, "TFDS_DATA_DIR": str(Path(cwd, "tfds")), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout
