"""torchvision beside a torch for the CPU alone: its Python parts work, once its compiled operators are declared."""

import importlib.util
import re
import sys
from types import ModuleType

_LIBRARIES = []  # declarations end with the object that made them


def import_torchvision() -> ModuleType | None:
    """torchvision, or None where torch or torchvision is not installed."""
    if not (importlib.util.find_spec("torch") and importlib.util.find_spec("torchvision")):
        return None
    import torch

    while True:  # every attempt comes as far as the first operator that is neither compiled nor declared
        try:
            import torchvision

            return torchvision
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            if not _LIBRARIES:
                _LIBRARIES.append(torch.library.Library("torchvision", "DEF"))
            _LIBRARIES[0].define(f"{missing[1]}(Tensor x) -> Tensor")
            for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
                del sys.modules[name]
