"""Our ResNets give torchvision's features for the same weights, in evaluation and in training, at odd sizes too."""

import jax
import numpy as np
import pytest

from moco_jax.checkpoints.torch_names import from_torch, to_torch
from moco_jax.config import BatchNorm, Model
from moco_jax.models import encoder
from tests.parity.network_cases import CASES, IMAGES, STORED, images, tensors
from tests.parity.torchvision_cpu import import_torchvision

pytestmark = pytest.mark.slow


WIDTHS = {"resnet18": 512, "resnet50": 2048}  # D


def ours(arch, size, dtype):
    """What `make_network.features` gives, from our encoder with a head that changes nothing."""
    width = WIDTHS[arch]
    model = Model(arch, stem="imagenet", width=64, head="linear", dim=width, dtype=dtype)
    made = encoder.from_config(model, BatchNorm(IMAGES), channels=3, size=size, dtype=np.dtype(dtype))
    like = jax.eval_shape(made.init, jax.random.key(0))
    backbone = {part: {"backbone": like[part]["backbone"]} for part in ("params", "batch_stats")}
    shapes = {n: t.shape for n, t in to_torch(jax.tree.map(lambda a: np.zeros(a.shape, np.int8), backbone)).items()}
    network = from_torch(tensors(arch, shapes), backbone)
    identity = {"fc": {"kernel": np.eye(width), "bias": np.zeros(width)}}
    params, stats = network["params"] | {"head": identity}, network["batch_stats"]
    params, stats = jax.tree.map(lambda a: np.asarray(a, dtype), (params, stats))

    @jax.jit
    def both(params, stats, x):
        return made.features(params, stats, x)["backbone"], made.project(params, stats, x)

    evaluated, (trained, left) = both(params, stats, images(arch, size).astype(dtype).transpose(0, 2, 3, 1))
    return {"eval": evaluated, "train": trained, **to_torch({"batch_stats": left})}


def assert_equal(arch, size, dtype, tolerance):
    seen = ours(arch, size, dtype)
    with np.load(STORED) as file:
        expected = {k.removeprefix(f"{arch}/{size}/"): file[k] for k in file.files if k.startswith(f"{arch}/{size}/")}
    assert {"eval", "train"} < set(expected)
    for name, theirs in expected.items():
        difference = np.abs(np.asarray(seen[name], np.float64) - theirs).max() / np.abs(theirs).max()
        assert difference < tolerance, f"{name}: {difference:.1e}"


@pytest.mark.parametrize(("arch", "size"), CASES)
def test_features_equal_torchvisions(arch, size, float64):
    """Evaluation, training, and the running statistics that training leaves, in double precision."""
    assert_equal(arch, size, "float64", 1e-10)  # measured: 1.8e-14


@pytest.mark.parametrize(("arch", "size"), CASES)
def test_features_equal_torchvisions_in_single_precision(arch, size):
    """The same in float32, to rounding."""
    assert_equal(arch, size, "float32", 1e-5)  # measured: 5e-6


@pytest.mark.parametrize(("arch", "size"), CASES)
def test_torchvision_still_gives_the_stored_values(arch, size):
    """Where torch and torchvision are installed: what is stored is what torchvision computes."""
    if import_torchvision() is None:
        pytest.skip("torch and torchvision are not installed")
    from tests.parity import make_network

    with np.load(STORED) as file:
        for name, value in make_network.features(arch, size).items():
            np.testing.assert_allclose(value, file[f"{arch}/{size}/{name}"], rtol=1e-9, atol=1e-12)
