"""Photos written as what other fields have: large ones, 16-bit PNG, TIFF of many bands. For `input_pipeline`."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image

SUFFIXES = {"jpeg": (".jpg", ".jpeg"), "large": (".jpg",), "png16": (".png",), "tiff13": (".tif",)}
COUNTS = {"large": 16, "png16": 64, "tiff13": 64}  # files
MEGAPIXELS, BANDS, SIDE = 12, 13, 256


def write(folder: Path, target: Path, kind: str) -> None:
    """The first JPEG files of a folder as others, in `target`.

    large: enlarged to 12 megapixels, JPEG of quality 92; png16: each value times 257; tiff13: 13 bands of 256 x 256
    pixels, the colours times different factors, uncompressed.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES["jpeg"])[: COUNTS[kind]]
    for i, file in enumerate(files):
        picture = Image.open(file).convert("RGB")
        if kind == "large":
            scale = (MEGAPIXELS * 1e6 / (picture.width * picture.height)) ** 0.5
            size = (round(picture.width * scale), round(picture.height * scale))
            picture.resize(size, Image.Resampling.LANCZOS).save(target / f"{i:03}.jpg", quality=92)
        elif kind == "png16":
            cv2.imwrite(str(target / f"{i:03}.png"), np.asarray(picture, np.uint16)[..., ::-1] * 257)
        else:
            import tifffile

            colours = np.asarray(picture.resize((SIDE, SIDE)), np.uint16)
            bands = np.stack([colours[..., band % 3] * (100 + 10 * band) for band in range(BANDS)], axis=2)
            tifffile.imwrite(target / f"{i:03}.tif", bands, photometric="minisblack", planarconfig="contig")
