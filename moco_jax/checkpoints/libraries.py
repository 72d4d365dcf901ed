"""The one door for timm and transformers: features of a folder as its own library computes them, to compare with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from moco_jax.checkpoints import folders
from moco_jax.config import ConfigError


def opened(folder: Path) -> Callable[[np.ndarray], np.ndarray] | None:
    """Prepared images (n, C, H, W) -> backbone features (n, D) float32, by the library that the folder is for.

    In evaluation mode, on the CPU, from the folder alone: nothing is downloaded. None where that library, or what it
    needs, is not installed. Raises ConfigError where the library opens the folder without some of its weights.
    """
    found = {"timm": _timm, "huggingface": _transformers}[folders.library(folder)](folder.resolve())
    if found is None:
        return None
    import torch

    model, call = found
    model.float().eval()

    def features(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return np.asarray(call(torch.from_numpy(np.array(images, np.float32, order="C"))).numpy(), np.float32)

    return features


def _timm(folder: Path) -> Any:
    try:
        import timm
    except ImportError:
        return None
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True)  # strict: every name must be there
    return model, lambda x: model.forward_head(model.forward_features(x), pre_logits=True)


def _transformers(folder: Path) -> Any:
    try:
        from transformers import ResNetModel
        from transformers.utils import logging
    except ImportError:
        return None
    logging.disable_progress_bar()
    # By this class and not by an Auto one, which would look into config.json for code to import.
    found: Any = ResNetModel.from_pretrained(str(folder), local_files_only=True, output_loading_info=True)
    model, report = found
    if report["missing_keys"] or report["mismatched_keys"]:
        raise ConfigError(f"transformers opened {folder} without {sorted(report['missing_keys'])[:3]}")
    return model, lambda x: model(x).pooler_output.flatten(1)
