"""JPEG by OpenCV: Pillow's pixels, and Pillow's word where they could differ."""

import io
import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moco_jax.data import jpeg, pixels

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (37, 53, 3), np.uint8)
FORMS = [  # sequential, progressive, of several samplings, with markers for restarts
    {"quality": 90},
    {"quality": 60, "progressive": True},
    {"quality": 95, "subsampling": 0, "restart_marker_blocks": 4},
    {"quality": 75, "subsampling": 1, "optimize": True},
    {"quality": 90, "keep_rgb": True},
]
PHOTOS = Path(__file__).parents[3] / "shared/data/imagenet_sample"


def encoded(picture=NOISE, mode="RGB", **how):
    out = io.BytesIO()
    Image.fromarray(picture).convert(mode).save(out, "JPEG", **({"quality": 90} | how))
    return out.getvalue()


def by_pillow(data, channels=None):
    image = Image.open(io.BytesIO(data))
    return np.asarray(image if channels is None else image.convert({1: "L", 3: "RGB"}[channels]))


@pytest.mark.parametrize(("how", "mode"), [*itertools.product(FORMS, ["RGB", "L"])])
def test_pixels_are_those_of_pillow(how, mode):
    """As stored and converted to colour; gray of a gray picture; and it is OpenCV that reads them."""
    data = encoded(mode=mode, **(how if mode == "RGB" else how | {"keep_rgb": False}))
    for channels in (None, 3) if mode == "RGB" else (None, 1, 3):
        found = jpeg.decode(data, channels)
        assert found is not None and found.dtype == np.uint8
        np.testing.assert_array_equal(found, by_pillow(data, channels))


@pytest.mark.parametrize("orientation", [3, 6])
def test_an_orientation_is_not_applied(orientation):
    """As torchvision's loader does not; behind it is a preview with a header and an end of its own."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(exif=exif)
    np.testing.assert_array_equal(jpeg.decode(data, None), by_pillow(data))


def test_what_pillow_converts_is_left_to_it():
    """CMYK, and gray of colour, which OpenCV would take from the compressed luminance."""
    assert jpeg.decode(encoded(mode="CMYK"), 3) is None and jpeg.decode(encoded(), 1) is None
    np.testing.assert_array_equal(pixels.decode(encoded(), "x", channels=1)[..., 0], by_pillow(encoded(), 1))


@pytest.mark.parametrize("how", FORMS)
def test_a_file_that_is_cut_anywhere_is_bad(how):
    """OpenCV gives nothing of it, and Pillow says why; bytes behind the end do not matter."""
    data = encoded(**how)
    for end in (1, 2, 3, 10, 100, len(data) // 2, len(data) - 3):
        assert jpeg.decode(data[:-end], None) is None
        with pytest.raises(pixels.Unreadable):
            pixels.decode(data[:-end], "x")
    np.testing.assert_array_equal(jpeg.decode(data + b"\0\0", None), by_pillow(data))


def test_another_kind_of_jpeg_is_left_to_pillow():
    """Arithmetic coding, twelve bits, and a header that ends nowhere."""
    data = encoded()
    place = data.index(b"\xff\xc0")
    assert jpeg.components(data) == 3
    for marker in (0xC3, 0xC9, 0xCA):
        assert jpeg.components(data[:place] + bytes([0xFF, marker]) + data[place + 2 :]) is None
    assert jpeg.components(data[: place + 4] + b"\x0c" + data[place + 5 :]) is None
    for size in range(place + 9):
        assert jpeg.components(data[:size]) is None
    assert jpeg.components(data[:2] + b"\xff\xff\xff" + data[2:]) == 3  # filling before a marker
    assert jpeg.components(data[:2] + b"\xff\x01" + data[2:]) == 3


def test_damage_within_a_picture_passes_where_it_passes_in_pillow():
    """Bytes overwritten behind the header: the decoder of both goes on, and leaves the same pixels."""
    data = bytearray(encoded())
    begin = data.index(b"\xff\xda") + 14
    read = 0
    for place in range(begin, len(data) - 8, 97):
        broken = bytes(data[:place] + bytes(4) + data[place + 4 :])
        found = jpeg.decode(broken, None)
        np.testing.assert_array_equal(found, by_pillow(broken))
        read += 1
    assert read > 20


def test_photographs_are_those_of_pillow():
    """ImageNet's own files, where they lie beside the project."""
    files = [p for p in PHOTOS.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg")]
    if not files:
        pytest.skip("no shared/data/imagenet_sample beside the project: photographs to read")
    fast = 0
    for file in files[:64]:
        data = file.read_bytes()
        found = jpeg.decode(data, 3)
        fast += found is not None
        assert found is None or np.array_equal(found, by_pillow(data, 3)), file
    assert fast > 60
