"""The one door for timm and transformers: features of a folder as its own library computes them, to compare with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moco_jax.checkpoints import folders, messages
from moco_jax.config import ConfigError


def opened(folder: Path) -> Callable[[np.ndarray], np.ndarray] | str:
    """Prepared images (n, C, H, W) -> backbone features (n, D) float32, by the library that the folder is for.

    In evaluation mode, on the CPU, from the folder alone: nothing is downloaded. Where that library is not installed,
    or does not import, words that say so. Raises ConfigError where the library opens the folder without some of its
    weights.
    """
    name, by = {"timm": ("timm", _timm), "huggingface": ("transformers", _transformers)}[folders.library(folder)]
    if (why := _why_not(name)) is not None:
        return why
    import torch

    model, call = by(folder.resolve())
    model.float().eval()

    def features(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(call(torch.from_numpy(np.array(images, np.float32, order="C"))).numpy(), np.float32)

    return features


def _why_not(name: str) -> str | None:
    """Why a library cannot be asked, in words; None where it can."""
    try:
        if name == "timm":
            import timm  # noqa: F401
        else:
            from transformers import ResNetModel  # noqa: F401
        import torch  # noqa: F401
    except Exception as error:  # importing runs whatever a library does, such as operators that this torch has not
        if isinstance(error, ModuleNotFoundError) and error.name == name:
            return f"{name} is not installed"
        reason = messages.one_line(f"{type(error).__name__}: {error}", 200)
        return f"{name} is installed and does not import ({reason})"
    return None


def _timm(folder: Path) -> Any:
    import timm

    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)  # strict: every name must be there
    return model, lambda x: model.forward_head(model.forward_features(x), pre_logits=True)


def _transformers(folder: Path) -> Any:
    from transformers import ResNetModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    # By this class and not by an Auto one, which would look into config.json for code to import.
    found: Any = ResNetModel.from_pretrained(str(folder), local_files_only=True, output_loading_info=True)
    model, report = found
    if report["missing_keys"] or report["mismatched_keys"]:
        raise ConfigError(f"transformers opened {folder} without {sorted(report['missing_keys'])[:3]}")
    return model, lambda x: model(x).pooler_output.flatten(1)
