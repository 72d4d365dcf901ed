"""Import torchvision's models and PIL transforms beside a CPU-only torch.

No CPU build of torchvision is at hand, but its Python parts need none: install it without its dependencies
(`pip install --no-deps torchvision==0.28.0` beside `torch==2.13.0`) and declare the missing compiled operators first.
`resnet18`, `resnet50`, `ColorJitter`, `RandomResizedCrop`, `GaussianBlur` ... then run as published. For oracles in tests
and benchmarks only.
"""

import re
import sys

import torch


def import_torchvision():
    """Return the torchvision module, with stubs for its compiled operators (they raise if called)."""
    library = torch.library.Library("torchvision", "DEF")
    import_torchvision.keep_alive = library
    while True:
        for name in [m for m in sys.modules if m.startswith("torchvision")]:
            del sys.modules[name]
        try:
            import torchvision

            return torchvision
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if not missing:
                raise
            library.define(f"{missing.group(1)}(Tensor x) -> Tensor")


if __name__ == "__main__":
    tv = import_torchvision()
    from torchvision.models import resnet50

    print(tv.__version__, sum(p.numel() for p in resnet50().parameters()))
