"""One encoded image made smaller: the same format, channels and dtype, and a shorter side of so many pixels.

JPEG, PNG, WebP, TIFF, npy, BMP and PPM stay what they are. An EXIF orientation is neither applied nor written: pixels
lie as they lay, and no tag turns them. A colour profile stays with the numbers that it explains.
"""

import io
from typing import Any

import numpy as np
from PIL import Image

from moco_jax.config import ConfigError
from moco_jax.data import crops, pixels

QUALITY = 95  # of JPEG and lossy WebP
FULL_COLOUR = 0  # Pillow's number for 4:4:4: colour at the resolution of brightness
KEPT = ("JPEG", "PNG", "WEBP", "BMP", "PPM")  # Pillow's names of what stays what it is; others become PNG


def smaller(encoded: bytes, where: str, *, short_side: int, quality: int = QUALITY) -> bytes | None:
    """The image with a shorter side of `short_side` pixels; None where it is no longer than that.

    It is resized as `crops.shorter_side` does: 8 bits by the bicubic filter, others by the bilinear one. A palette
    becomes RGB, and a bit becomes gray, as `pixels.decode` has them. Raises ConfigError, which names `where`, for what
    is damaged, no image, or not written here.
    """
    try:
        image = _decoded(encoded, where)
        if min(image.shape[:2]) <= short_side:
            return None
        filter = "bicubic" if image.dtype == np.uint8 else "bilinear"  # closer; but it makes values beyond those there
        return _encoded(crops.shorter_side(image, short_side, filter=filter), encoded, where, quality)
    except (ConfigError, ImportError, MemoryError):  # nothing that the bytes are to blame for
        raise
    except Exception as error:  # a damaged image can raise anything in a decoder
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{where} cannot be read: {said}") from error


def _decoded(encoded: bytes, where: str) -> np.ndarray:
    """(H, W, C) as stored; RGB where stored numbers are no colours: a palette, or YCbCr in a TIFF."""
    try:
        return pixels.decode(encoded, where)
    except pixels.Unreadable:
        raise
    except ConfigError as refused:
        try:
            return pixels.decode(encoded, where, channels=3)
        except ConfigError:  # nor is it a palette: then it is what was said of it first
            raise refused from None


def _encoded(image: np.ndarray, like: bytes, where: str, quality: int) -> bytes:
    """An image (H, W, C) in the format of `like`."""
    kind = pixels.format_of(like)
    out = io.BytesIO()
    if kind == "npy":
        np.save(out, image if np.load(io.BytesIO(like), allow_pickle=False).ndim == 3 else image[:, :, 0])
        return out.getvalue()
    if kind == "TIFF":
        return pixels.tiff_like(image, like)
    if image.dtype != np.uint8:
        return pixels.deep_png(image, where)
    with Image.open(io.BytesIO(like)) as source:
        form, mode, profile = source.format, source.mode, source.info.get("icc_profile")
    mode = {"1": "L", "P": "RGB", "PA": "RGB"}.get(mode, mode)
    picture = Image.frombytes(mode, (image.shape[1], image.shape[0]), image.tobytes())
    picture.save(out, form if form in KEPT else "PNG", icc_profile=profile, **_how(form, like, quality))
    return out.getvalue()


def _how(form: str | None, like: bytes, quality: int) -> dict[str, Any]:
    """How Pillow writes a format."""
    if form == "JPEG":
        return {"quality": quality, "subsampling": FULL_COLOUR}
    return {"quality": quality, "lossless": b"VP8L" in like, "exact": True} if form == "WEBP" else {}
