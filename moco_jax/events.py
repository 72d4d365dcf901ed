"""Event files for TensorBoard, by tensorboardX: the numbers of the log, and pictures."""

import importlib.util
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from moco_jax.config import ConfigError


class Events:
    """Appends to the event files of a folder, one file for each start of the run."""

    def __init__(self, folder: Path, *, first_step: int):
        """`first_step` steps are done: later ones of a run that was killed are hidden by TensorBoard."""
        from tensorboardX import SummaryWriter

        # Files are named by the second: a run that is continued at once must not write over the file before.
        self._writer = SummaryWriter(str(folder), purge_step=first_step + 1, filename_suffix=f".{first_step}")

    def numbers(self, record: Mapping[str, Any]) -> None:
        """Every finite number of a line of the log, at its step."""
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                self._writer.add_scalar(name, value, record["step"])

    def picture(self, name: str, png: bytes, step: int) -> None:
        """A PNG."""
        import numpy as np
        from PIL import Image

        with Image.open(io.BytesIO(png)) as image:
            self._writer.add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is pending."""
        self._writer.close()


def check_installed() -> None:
    """Raises ConfigError where tensorboardX is not installed."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError(
            "log.tensorboard=True needs tensorboardX: pip install 'moco_jax[tensorboard]' (or tensorboardX), or set "
            "log.tensorboard=False"
        )
