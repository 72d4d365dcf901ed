"""One encoded image as an array (H, W, C): JPEG, PNG, WebP, TIFF and .npy, told apart by content, never by suffix.

Values are what the file stores, in uint8, uint16 or float32; a conversion happens where the caller names a number of
channels, and then it is Pillow's. An EXIF orientation is not applied, as in torchvision's loader of images.
"""

import io
import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from PIL import Image, UnidentifiedImageError

from moco_jax.config import ConfigError
from moco_jax.data import jpeg

CHANNELS = (None, 1, 3)  # what `decode` converts to
DTYPES = ("uint8", "uint16", "float32")  # storage dtypes that the views understand
STORED = frozenset(np.dtype(name) for name in DTYPES)
EIGHT_BIT = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")  # Pillow modes that convert without clipping
MAGIC = {
    b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG", b"\x93NUMPY": "npy",
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",  # the last two: BigTIFF
}  # fmt: skip
LAB = ("CIELAB", "ICCLAB", "ITULAB")  # colour spaces of TIFFs that Pillow does not convert
PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by the colour type of a 16-bit PNG
TIFF_EXTRA = 'pip install "moco_jax[tiff]"'
WAITS = (0.5, 2.0)  # seconds before a file is tried again that the disk did not give
FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)  # another try would say the same

Answer = TypeVar("Answer")
Place = TypeVar("Place")


class Unreadable(ConfigError):
    """A bad file: one that is empty, damaged, no image, or not there any more; `why` says so in a few words."""

    def __init__(self, message: str, why: str | None = None) -> None:
        super().__init__(message)
        self.why = message if why is None else why


def check_channels(channels: int | None) -> None:
    """Raises ConfigError for what is none of CHANNELS."""
    if channels not in CHANNELS:
        raise ConfigError(f"data.channels {channels} is no conversion; use 1 (gray), 3 (RGB) or None (as stored)")


def format_of(encoded: bytes) -> str:
    """JPEG, PNG, WebP, TIFF or npy by the first bytes of a file; "" for anything else, which is left to Pillow."""
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
        return "WebP"
    return next((name for magic, name in MAGIC.items() if encoded.startswith(magic)), "")


def read_file(path: str | os.PathLike[str], *, channels: int | None = None, where: str | None = None) -> np.ndarray:
    """The image in a file, (H, W, C), as `decode` has it, with its errors; Unreadable also for one that is not there.

    `where` is what messages call the file (None: its path). A disk that does not answer says nothing of the file: it is
    tried three times within seconds, and its OSError goes on to the caller, as one for want of permission does.
    """
    where = where or os.fspath(path)
    try:
        encoded = patiently(_whole, path)
    except FileNotFoundError:
        raise Unreadable(f"{where} is not there", "is not there") from None
    return decode(encoded, where, channels=channels)


def patiently(asked: Callable[[Place], Answer], path: Place) -> Answer:
    """`asked(path)`, three times within seconds where the disk does not answer; raises its last OSError, and at once
    those that another try would not change."""
    for wait in WAITS:
        try:
            return asked(path)
        except FINAL:
            raise
        except OSError:
            time.sleep(wait)
    return asked(path)


def _whole(path: str | os.PathLike[str]) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def decode(encoded: bytes, where: str, *, channels: int | None = None) -> np.ndarray:
    """An encoded image as (H, W, C) in uint8, uint16 or float32, as stored; a bit becomes 0 or 255.

    `channels` 3 or 1 converts 8-bit images as Pillow does; an image that has as many already is left alone. Raises
    Unreadable, which names `where`, for bytes that are no whole image, and ConfigError for a whole one of no use: what
    would have to be clipped or reduced, another dtype, a palette without `channels`, and what is not one image.
    """
    # What is bad is a promise: training replaces it, and `inspect` finds it beforehand. For JPEG, PNG and WebP of 8
    # bits it is what Pillow refuses.
    if not encoded:
        raise Unreadable(f"{where} is empty", "is empty")
    try:
        return _checked(_decoded(encoded, where, channels), where, channels)
    except (ConfigError, ImportError, MemoryError):  # nothing that the bytes are to blame for
        raise
    except UnidentifiedImageError:
        why = "is no image that can be read (JPEG, PNG, WebP, TIFF, npy, BMP, PPM)"
        raise Unreadable(f"{where} {why}", why) from None
    except Exception as error:  # a damaged image can raise anything in a decoder
        said = str(error).splitlines()[0] if str(error) else ""
        if "imagecodecs" in said:  # tifffile needs it for this compression, and it is not installed
            raise ConfigError(f"{where}: {said}: {TIFF_EXTRA}") from None
        why = f"cannot be read: {said}" if isinstance(error, OSError) else f"cannot be read: {_named(error, said)}"
        raise Unreadable(f"{where} {why}", why) from error


def _named(error: Exception, said: str) -> str:
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _decoded(encoded: bytes, where: str, channels: int | None) -> np.ndarray:
    kind = format_of(encoded)
    if kind == "JPEG" and (found := jpeg.decode(encoded, channels)) is not None:
        return found
    if kind == "npy":
        return _npy(encoded, where)
    if kind == "TIFF":
        return _tiff(encoded, where, channels)
    if kind == "PNG" and encoded[24:25] == b"\x10":  # the header's bits per value
        return _deep_png(encoded, where)
    return _pillow(encoded, where, channels)


def _checked(image: np.ndarray, where: str, channels: int | None) -> np.ndarray:
    """(H, W) or (H, W, C) -> (H, W, C) in native byte order; ConfigError for another dtype or a conversion to do."""
    image = image.astype(image.dtype.newbyteorder("="), copy=False)
    image = image[:, :, None] if image.ndim == 2 else image
    if image.size == 0:
        raise Unreadable(f"{where} has no pixels: {image.shape}", f"has no pixels: {image.shape}")
    if image.ndim != 3 or image.dtype not in STORED:
        raise ConfigError(
            f"{where} is {image.dtype} {image.shape}; an image is (H, W) or (H, W, C) of {', '.join(DTYPES)}: "
            "convert it once, as you mean it, and store that"
        )
    if channels is not None and image.shape[2] != channels:
        raise ConfigError(
            f"{where} holds {image.dtype} of {image.shape[2]} channels, and data.channels={channels} converts 8-bit "
            "gray, colour and palette pictures only; leave that key out"
        )
    return image


def _pillow(encoded: bytes, where: str, channels: int | None) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        mode = image.mode
        frames = getattr(image, "n_frames", 1)
        image.load()  # damage comes first, so that whether a file is bad does not depend on what is asked of it
        if frames > 1 and image.format in ("GIF", "WEBP"):  # cameras put a preview behind a JPEG
            raise ConfigError(f"{where} holds {frames} frames, and an image is one; store each as a file")
        if channels is not None and mode not in EIGHT_BIT:
            raise ConfigError(
                f"{where} is not 8-bit (Pillow mode {mode}): data.channels would clip it; leave that key out"
            )
        if channels is None and mode in ("P", "PA"):
            raise ConfigError(f"{where} is a palette image; set data.channels=3 for its colours")
        wanted = {1: "L", 3: "RGB", None: "L" if mode == "1" else mode}[channels]
        return np.asarray(image.convert(wanted) if wanted != mode else image)


def _deep_png(encoded: bytes, where: str) -> np.ndarray:
    """A PNG of 16 bits per value: gray by Pillow, colour by OpenCV, as Pillow reduces it to 8 bits."""
    count = PNG_CHANNELS[encoded[25]]
    if count == 1:
        with Image.open(io.BytesIO(encoded)) as image:
            return np.asarray(image, np.uint16)
    import cv2  # large: only for who has such files

    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)  # B, G, R or B, G, R, A
    if pixels is None:
        raise OSError("damaged 16-bit PNG")
    order = {2: [0, 3], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[count]  # OpenCV spreads gray with alpha over four
    if pixels.dtype != np.uint16 or pixels.ndim != 3 or pixels.shape[2] <= max(order):
        raise ConfigError(f"{where}: OpenCV reads {pixels.dtype} {pixels.shape} of a PNG of {count} 16-bit channels")
    return pixels[:, :, order]


def deep_png(image: np.ndarray, where: str) -> bytes:
    """(H, W, C) in uint16 -> a PNG of 16 bits per value; ConfigError for gray with alpha, which is not written here."""
    count = image.shape[2]
    if count == 2:
        raise ConfigError(f"{where} is a 16-bit PNG of gray with alpha, which is not written here; store it as RGBA")
    if count == 1:
        out = io.BytesIO()
        Image.fromarray(image[:, :, 0]).save(out, "PNG")
        return out.getvalue()
    import cv2  # large: only for who has such files

    return cv2.imencode(".png", image[:, :, {3: [2, 1, 0], 4: [2, 1, 0, 3]}[count]])[1].tobytes()


def _npy(encoded: bytes, where: str) -> np.ndarray:
    try:
        return np.load(io.BytesIO(encoded), allow_pickle=False)
    except ValueError as error:
        why = f"is no whole array of numbers ({str(error).splitlines()[0]})"
        raise Unreadable(f"{where} {why}", why) from error


def _tiff(encoded: bytes, where: str, channels: int | None) -> np.ndarray:
    """One image by tifffile, whatever its channels, planes and bits; by Pillow where 8 bits are to be converted.

    Without a conversion values are as stored: where white is 0 (photometric MinIsWhite), it stays 0. YCbCr inside JPEG
    is a part of the compression, so that the image is RGB.
    """
    try:
        import tifffile
    except ImportError:
        raise ConfigError(f"{where} is a TIFF, which needs tifffile: {TIFF_EXTRA}") from None
    with tifffile.TiffFile(io.BytesIO(encoded)) as file:
        page = file.pages.first
        kind, count = tifffile.PHOTOMETRIC(page.photometric).name, page.samplesperpixel
        if kind in LAB:
            raise ConfigError(f"{where} is a TIFF of {kind} colours, which are not converted here; store it as RGB")
        foreign = kind == "YCBCR" and page.compression != tifffile.COMPRESSION.JPEG
        if foreign and channels is None:
            raise ConfigError(f"{where} is a TIFF of {kind} colours; set data.channels=3 to have them as RGB")
        as_wanted = count == channels and not foreign and (count, kind) != (1, "MINISWHITE")
        convertible = page.dtype == np.uint8 and count <= 4 and channels is not None and not as_wanted
        if page.dtype == np.bool_ or kind == "PALETTE" or convertible:
            return _tiff_by_pillow(encoded, where, channels, f"{count} {kind} channel{'s' if count > 1 else ''}")
        image, axes = _one_image(file, where)
    if axes in ("SYX", "CYX"):  # band after band
        return np.moveaxis(image, 0, 2)
    if axes not in ("YX", "YXS", "YXC"):
        raise ConfigError(f"{where} is a TIFF of axes {axes} {image.shape}; an image has Y, X and perhaps channels")
    return image


def _tiff_by_pillow(encoded: bytes, where: str, channels: int | None, held: str) -> np.ndarray:
    """A TIFF of `held`, as Pillow converts it; ConfigError for one that only tifffile knows."""
    try:
        return _pillow(encoded, where, channels)
    except UnidentifiedImageError:
        change = "" if channels is None else f", or leave data.channels={channels} out"
        raise ConfigError(f"{where} is a TIFF of {held}, no gray or colour: store it as gray or RGB{change}") from None


def _one_image(file: Any, where: str) -> tuple[np.ndarray, str]:
    """The pixels of the one image of a TIFF and its axes; ConfigError for a stack. Overviews and masks do not count."""
    pages = [page for page in file.pages if not (page.is_reduced or page.is_mask)]
    if len(pages) == 1:
        return pages[0].asarray(), pages[0].axes
    series = file.series[0]
    if series.axes == "CYX" and len(series.pages) == len(pages):  # ImageJ and OME keep channels as pages
        return series.asarray(), series.axes
    raise ConfigError(
        f"{where} is a TIFF of {len(pages)} pages (axes {series.axes}), and an image is one: store each page as a "
        "file, or channels as the samples of one page"
    )


def tiff_like(image: np.ndarray, like: bytes) -> bytes:
    """(H, W, C) -> a TIFF without loss, whose channels mean what those of another mean, as `decode` has them.

    Tags of places on Earth and the like are left out, as they are about pixels of another size.
    """
    import tifffile  # it has read `like`

    with tifffile.TiffFile(io.BytesIO(like)) as file:
        page = file.pages.first
        kind, extra, profile = tifffile.PHOTOMETRIC(page.photometric), page.extrasamples, page.iccprofile
        if kind.name in ("YCBCR", "PALETTE"):
            kind = tifffile.PHOTOMETRIC.RGB
        if page.dtype == np.bool_:
            kind = tifffile.PHOTOMETRIC.MINISBLACK
    further = image.shape[2] - {"RGB": 3, "SEPARATED": 4}.get(kind.name, 1)
    out = io.BytesIO()
    tifffile.imwrite(
        out,
        image if image.shape[2] > 1 else image[:, :, 0],
        photometric=kind,
        planarconfig="contig" if image.shape[2] > 1 else None,
        extrasamples=extra if len(extra) == further > 0 else None,
        compression="zlib",
        iccprofile=profile,
        metadata=None,
    )
    return out.getvalue()
