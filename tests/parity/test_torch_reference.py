"""The PyTorch reference stands by itself, and its options for speed change only rounding. Skips without torch."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: the stored values stand for it")

from tests.parity import torch_reference  # noqa: E402
from tests.parity.torchvision_cpu import import_torchvision  # noqa: E402


def test_it_needs_torch_alone():
    """A speed comparison copies one file: nothing of ours, no JAX, no torchvision is imported with it."""
    file = Path(torch_reference.__file__)
    code = f"import sys; sys.path.insert(0, {str(file.parent)!r}); import {file.stem}; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout
    assert not {"jax", "flax", "moco_jax", "torchvision", "tests"} & set(out.split())


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_its_networks_are_torchvisions(arch):
    """torchvision's weights load by name, and give torchvision's features in training and in evaluation."""
    torchvision = import_torchvision()
    if torchvision is None:
        pytest.skip("torchvision is not installed")
    theirs = getattr(torchvision.models, arch)(num_classes=7).double()
    ours = torch_reference.Encoder(arch, "imagenet", 64, "linear", 7, 3).double()
    ours.load_state_dict(theirs.state_dict())
    x = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 3, 65, 65)))
    with torch.no_grad():
        for train in (True, False):
            torch.testing.assert_close(ours.train(train)(x), theirs.train(train)(x), rtol=1e-10, atol=1e-10)
    for name, value in theirs.state_dict().items():
        if "num_batches" not in name:
            torch.testing.assert_close(ours.state_dict()[name], value)


def one_step(**options):
    """Logits of a step of a tiny net, and how the step moved a weight."""
    torch.manual_seed(0)
    encoders = [torch_reference.Encoder("resnet_tiny", "cifar", 8, "mlp", 16, 4) for _ in range(2)]
    moco = torch_reference.Moco(
        *encoders,
        dim=16,
        queue_size=32,
        momentum=0.9,
        temperature=0.2,
        symmetric=True,
        weight_decay=1e-4,
        **options,
    )
    views, before = [torch.randn(8, 3, 16, 16) for _ in range(2)], encoders[0].layer2[0].conv1.weight.detach().clone()
    seen = moco.step(views, [torch.randperm(8) for _ in range(2)], 0.1)
    return torch.stack(seen["logits"]), moco.online.layer2[0].conv1.weight.detach() - before


COMPILED = pytest.param(
    {"compiled": True},
    1e-4,
    marks=[pytest.mark.slow, pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a compiler")],
)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [({"channels_last": True}, 1e-4), ({"fused": True}, 1e-4), ({"compute": torch.bfloat16}, 0.5), COMPILED],
)
def test_options_for_speed_keep_the_step(options, tolerance):
    """Logits and the update of a weight, relative to their size: memory format and compiler round, autocast more so."""
    plain, other = one_step(), one_step(**options)
    assert other[0].dtype == torch.float32
    for a, b in zip(plain, other, strict=True):
        assert (a - b).norm() < tolerance * a.norm()  # measured: 2e-6, 0.27, 3e-6; without the update: 1


def test_groups_do_not_see_each_other():
    """Another image in the second group changes no feature of the first."""
    encoder = torch_reference.Encoder("resnet_tiny", "cifar", 4, "linear", 8, 4).train()
    x = torch.randn(8, 3, 8, 8)
    changed = x.clone()
    changed[6] += 1
    with torch.no_grad():
        moved = (encoder(x) - encoder(changed)).abs().amax(1) > 0
    assert moved.tolist() == [False] * 4 + [True] * 4
