"""What is written twice agrees: requirements, versions, make targets; and what is fetched is pinned or declared."""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import moco_jax
from tests import locks
from tests.test_house_rules import python_files, uses

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = sorted(ROOT.glob("requirements-lock-*.txt"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))

IMPORT_NAMES = {"orbax-checkpoint": "orbax", "absl-py": "absl", "pillow": "PIL", "scikit-learn": "sklearn"}
IMPORT_NAMES |= {"opencv-python-headless": "cv2", "tensorboardx": "tensorboardX"}
NEVER_IMPORTED = {"imagecodecs"}  # tifffile asks for it, and does not install it
PINNED = re.compile(r"uses: [\w.-]+/[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+$")


def requirements(text: str) -> list[str]:
    """The lines of a requirements file without comments."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def package(requirement: str) -> str:
    """The normalised package name of a requirement."""
    return re.match(r"[\w.-]+", requirement)[0].lower().replace("_", "-").replace(".", "-")


def import_name(requirement: str) -> str:
    """The name that a requirement is imported by."""
    name = package(requirement)
    return IMPORT_NAMES.get(name, name.replace("-", "_"))


def unpinned(workflow: str) -> list[str]:
    """The lines of a workflow that use an action other than by full commit hash with its version in a comment."""
    lines = [line.strip().removeprefix("- ") for line in workflow.splitlines()]
    return [line for line in lines if line.startswith("uses:") and not PINNED.match(line)]


def test_requirements_repeat_the_dependencies():
    """`pip install -r requirements.txt` and `pip install .` ask for the same."""
    assert requirements((ROOT / "requirements.txt").read_text()) == PROJECT["dependencies"]


def test_requirements_stay_small():
    """Neither PyTorch nor TensorFlow is needed at run time, and each dependency has a lower bound."""
    names = {package(r) for r in PROJECT["dependencies"]}
    assert not names & {"torch", "torchvision", "tensorflow", "tensorflow-cpu"}
    assert [r for r in PROJECT["dependencies"] if ">=" not in r] == []


def test_what_is_imported_is_declared_and_the_reverse():
    """No package is used because another one happens to bring it, and none is listed that nothing imports."""
    used = {u.name.split(".")[0] for f in python_files(ROOT / "moco_jax") for u in uses(f) if u.imported}
    used -= {"moco_jax", *sys.stdlib_module_names}
    declared = {import_name(r) for r in PROJECT["dependencies"] if package(r) not in NEVER_IMPORTED}
    extras = PROJECT["optional-dependencies"]
    asked = ("torch", "safetensors", "timm", "transformers", "tiff", "parquet", "gcs", "tensorboard", "tfrecord")
    extra = [r for name in asked for r in extras[name]]
    optional = {import_name(r) for r in extra if package(r) not in NEVER_IMPORTED}
    assert used - optional == declared


def test_extras_ask_for_no_older_jax():
    """The extras for accelerators and the dependencies name the same JAX."""
    (jax,) = (r for r in PROJECT["dependencies"] if package(r) == "jax")
    for extra in ("cuda12", "cuda13", "tpu"):
        assert PROJECT["optional-dependencies"][extra] == [jax.replace("jax", f"jax[{extra}]", 1)]


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_locks_agree_with_the_ranges(path):
    """Every package that is asked for is locked to one version, which its range allows; nothing large came along."""
    lines = requirements(path.read_text())
    pinned = dict(line.split("==") for line in lines)
    assert len(pinned) == len(lines) and list(pinned) == sorted(pinned)
    wrong = []
    for requirement in map(Requirement, locks.wanted()):
        version = pinned.get(locks.canonical(requirement.name))
        if version is None or version not in requirement.specifier:
            wrong.append(f"{requirement}: {version}")
    assert wrong == []
    assert not pinned.keys() & {"torch", "torchvision", "tensorflow", "tensorflow-cpu", "moco-jax"}


def test_the_oldest_and_the_newest_python_are_locked():
    """Those that CI runs."""
    pythons = {path.stem.removeprefix("requirements-lock-") for path in LOCKS}
    known = [
        c.split(" :: ")[-1] for c in PROJECT["classifiers"] if c.startswith("Programming Language :: Python :: 3.")
    ]
    assert pythons == {known[0], known[-1]} == {PROJECT["requires-python"].removeprefix(">="), known[-1]}
    if WORKFLOWS:
        (matrix,) = re.findall(r"python: (\[.*\])", (ROOT / ".github/workflows/check.yml").read_text())
        assert pythons == set(re.findall(r'"(.*?)"', matrix))


def test_a_lock_holds_what_is_needed_in_turn():
    """`make lock`: direct ones, those of an extra (etils[epath] of orbax), theirs; extras nobody asked for are not."""
    found = locks.versions(["orbax-checkpoint>=0.12.3"])
    assert {"orbax-checkpoint", "tensorstore", "etils", "zipp", "jaxlib", "numpy"} <= found.keys()
    assert not found.keys() & {"pytest", "torch", "clu"}
    assert found["orbax-checkpoint"] == importlib.metadata.version("orbax-checkpoint")


def test_changelog_begins_with_this_version():
    """Its newest entry is the version that is built."""
    entries = re.findall(r"^## \[(.+?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert entries[0] == moco_jax.__version__


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_pin_what_they_run(path):
    """An action is a full commit hash, which nobody can move; the workflow may only read."""
    text = path.read_text()
    assert "uses:" in text and unpinned(text) == []
    assert "permissions:\n  contents: read\n" in text


def granted(workflow: str) -> list[str]:
    """The lines below every `permissions:` of a workflow, of all jobs, without comments."""
    blocks = re.findall(r"^( *)permissions:(.*)\n((?:\1 +.*\n)*)", workflow, re.MULTILINE)
    lines = [line for _, inline, block in blocks for line in (inline, *block.splitlines())]
    return [text for line in lines if (text := line.split("#")[0].strip())]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_may_read_and_no_more(path):
    """A release proves who it is to PyPI, and leaves its token for nobody; no secret is asked for."""
    text = path.read_text()
    assert set(granted(text)) - {"contents: read"} == ({"id-token: write"} if path.name == "release.yml" else set())
    assert text.count("actions/checkout@") == text.count("persist-credentials: false")
    assert "secrets." not in text and "pull_request_target" not in text


def test_more_permissions_are_seen():
    """At the top, in a job, and in one word."""
    text = "permissions: write-all\njobs:\n  a:\n    permissions:\n      packages: write  # why\n    steps: []\n"
    assert granted(text) == ["write-all", "packages: write"]


def test_unpinned_actions_are_seen():
    """Tags, branches, short hashes and a missing version are all found."""
    sha = "08c6903cd8c0fde910a37f88322edcfb5dd907a8"
    wrong = ["actions/checkout@v5", "actions/checkout@main # v5.0.0", f"a/b@{sha[:12]} # v5.0.0"]
    wrong += [f"a/b@{sha}", f"a/b@{sha} # v5"]
    text = "\n".join(f"      - uses: {w}" for w in wrong) + f"\n      - uses: a/b@{sha} # v5.0.0\n"
    assert unpinned(text) == [f"uses: {w}" for w in wrong]


def test_the_make_targets_that_are_named_exist():
    """Wherever a file says `make something`, the Makefile has it."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    places = [*WORKFLOWS, *ROOT.glob("*.md"), ROOT / ".ci" / "run", ROOT / ".pre-commit-config.yaml"]
    named = {t for p in places for t in re.findall(r"(?:`|run: |entry: |^)make ([a-z-]+)", p.read_text(), re.MULTILINE)}
    assert {"test", "check", "check-rest", "lint", "types"} <= named
    assert named <= targets
