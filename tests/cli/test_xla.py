"""What XLA is told: only where the flag is known and nothing but the CPU reads it, and never against the user."""

import importlib.util
import os
import subprocess
import sys
from importlib import metadata
from types import SimpleNamespace

import pytest

from moco_jax.cli import flags, xla

BARRIERS, EIGEN = ("=".join(flag) for flag in (xla.BARRIERS, xla.EIGEN))
OURS = f"{BARRIERS} {EIGEN}"
COUNT = """
from moco_jax.cli import flags
flags.prepare_environment()
import jax, jax.numpy as jnp
from jax import lax
shape = ("NHWC", "HWIO", "NHWC")
conv = lambda x, w: lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=shape)
barrier = lambda x: 2 * lax.optimization_barrier(x + 1)
text = lambda f, *x: jax.jit(f).lower(*x).compile().as_text()
print(text(conv, jnp.ones((4, 8, 8, 32)), jnp.ones((3, 3, 32, 32))).count("__ynn_fusion"))
print(text(barrier, jnp.ones(8)).count("opt-barrier("))
"""


ACCELERATORS = xla.accelerators
LIBRARIES = ("PJRT_NAMES_AND_LIBRARY_PATHS", "TPU_LIBRARY_PATH")


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    """A machine with nothing but two CPU cores, and a jaxlib that knows the flags."""
    for name in ("JAX_PLATFORMS", "JAX_NUM_CPU_DEVICES", *LIBRARIES):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(xla, "accelerators", list)
    monkeypatch.setattr(xla, "cores", lambda: 2)
    monkeypatch.setattr(metadata, "version", lambda name: {"jaxlib": "0.10.2"}[name])


def test_the_users_flags_stay_and_the_same_one_is_theirs():
    """Ours come beside others; one that the user gives, whatever its value, is not added."""
    assert xla.flags_with_ours("") == OURS and xla.flags_with_ours("--xla_a=1") == f"--xla_a=1 {OURS}"
    for (name, _), other in ((xla.EIGEN, BARRIERS), (xla.BARRIERS, EIGEN)):
        assert xla.flags_with_ours(f"--xla_a=1 {name}=x") == f"--xla_a=1 {name}=x {other}"
    assert xla.flags_with_ours(OURS) == OURS


def test_a_file_of_flags_is_left_alone():
    """XLA takes the whole of XLA_FLAGS for its path: with ours behind it, the process would end at a missing file."""
    assert xla.flags_with_ours("/tmp/flags.txt") == "/tmp/flags.txt"
    assert xla.flags_with_ours(" --xla_a=1") == f"--xla_a=1 {OURS}"  # no file


def test_one_core_is_best_as_jaxlib_has_it(monkeypatch):
    """Eigen is about how the work of a device is spread."""
    for cores, devices, told in ((1, 1, False), (2, 1, True), (2, 2, False), (8, 2, True)):
        monkeypatch.setattr(xla, "cores", lambda cores=cores: cores)
        monkeypatch.setenv("JAX_NUM_CPU_DEVICES", str(devices))
        assert xla.flags_with_ours("") == (OURS if told else BARRIERS), (cores, devices)


def test_a_jaxlib_that_may_not_know_them_is_not_told(monkeypatch):
    """An unknown flag would end the process."""
    for version, told in (
        ("0.10.0", True),
        ("0.11.1", True),
        ("0.12.0.1", True),
        ("0.9.2", False),
        ("0.13.0", False),
        ("1.0", False),
    ):
        monkeypatch.setattr(metadata, "version", lambda name, version=version: version)
        assert xla.flags_with_ours("") == (OURS if told else ""), version

    def nowhere(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", nowhere)
    assert xla.flags_with_ours("") == ""


def test_other_backends_are_not_told(monkeypatch):
    """With a plugin for GPU or TPU only where the platform is to be the CPU alone."""
    monkeypatch.setattr(xla, "accelerators", lambda: ["libtpu"])
    for platforms, told in (("", False), ("cpu", True), ("cuda,cpu", False), ("cpu,cuda", False), ("tpu", False)):
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
        assert xla.flags_with_ours("") == (OURS if told else ""), platforms


def test_other_backends_are_found_as_jax_finds_them(monkeypatch):
    """In the namespace `jax_plugins`, by the entry point of that name, libtpu, and in variables of JAX."""

    def found(*packages, points=()):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: name if name in packages else None)
        named = [SimpleNamespace(name=name) for name in points]
        monkeypatch.setattr(metadata, "entry_points", lambda *, group: named if group == "jax_plugins" else None)
        return ACCELERATORS()

    assert found() == [] and found("numpy") == []
    assert found("jax_plugins") == ["jax_plugins"] and found("libtpu") == ["libtpu"]
    assert found(points=["xla_cuda13"]) == ["xla_cuda13"]
    for name in LIBRARIES:
        with monkeypatch.context() as patch:
            patch.setenv(name, "/lib/mine.so")
            assert found() == ["/lib/mine.so"], name


def test_commands_tell_them(monkeypatch):
    """What every command does before JAX is imported."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    flags.prepare_environment()
    assert os.environ["XLA_FLAGS"] == f"--xla_a=1 {OURS}"


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="on one core nothing is asked for")
def test_the_compiler_listens():
    """The flags as we write them leave convolutions out, which otherwise go to YNNPACK, and keep barriers."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_PLATFORMS": "cpu"}
    counts = {}
    nothing = f"{xla.EIGEN[0]}=-reduce {xla.BARRIERS[0]}=none"
    for name, own in (("ours", {}), ("theirs", {"XLA_FLAGS": nothing})):
        ran = subprocess.run(
            [sys.executable, "-c", COUNT], env=environment | own, capture_output=True, text=True, check=True
        )
        counts[name] = ran.stdout.split()
    assert counts == {"ours": ["0", "1"], "theirs": ["1", "0"]}
