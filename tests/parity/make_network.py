"""Write torchvision's features of the network's parity cases: `python -m tests.parity.make_network`.

Needs torch and torchvision. Never run it in a commit that changes the networks.
"""

import numpy as np
import torch

from tests.parity.network_cases import CASES, STORED, images, tensors
from tests.parity.torchvision_cpu import import_torchvision


def features(arch: str, size: int) -> dict[str, np.ndarray]:
    """Pooled features (IMAGES, D) in evaluation and training, and statistics that training leaves; float64."""
    net = getattr(import_torchvision().models, arch)().double()
    net.fc = torch.nn.Identity()
    shapes = {n: tuple(t.shape) for n, t in net.state_dict().items() if not n.endswith("num_batches_tracked")}
    given = {n: torch.from_numpy(t) for n, t in tensors(arch, shapes).items()}
    net.load_state_dict(given, strict=False)
    x = torch.from_numpy(images(arch, size))
    with torch.no_grad():
        out = {"eval": net.eval()(x), "train": net.train()(x)}
    left = net.state_dict()
    out |= {n: left[n] for n in ("bn1.running_var", "layer4.1.bn2.running_mean", "layer4.1.bn2.running_var")}
    return {name: t.numpy().copy() for name, t in out.items()}


def main() -> None:
    """All cases into one file."""
    arrays = {f"{arch}/{size}/{n}": t for arch, size in CASES for n, t in features(arch, size).items()}
    np.savez_compressed(STORED, **arrays)


if __name__ == "__main__":
    main()
