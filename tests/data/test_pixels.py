"""Encoded images: what is stored comes out, by content and whatever the suffix, or a line says why not."""

import errno
import io
import struct
import sys
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from moco_jax.config import ConfigError
from moco_jax.data import pixels

RNG = np.random.default_rng(0)
RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)  # every value once
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=2)
BANDS = RNG.integers(0, 65536, (6, 9, 13), dtype=np.uint16)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tifffile():
    return pytest.importorskip("tifffile", reason="tifffile is an extra")


def npy(array):
    out = io.BytesIO()
    np.save(out, array)
    return out.getvalue()


def tiff(module, array, **how):
    out = io.BytesIO()
    module.imwrite(out, array, **how)
    return out.getvalue()


def png16(array, colour, extra=b""):
    """A 16-bit PNG (H, W, C) of a colour type, written from the standard's own words."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour, 0, 0, 0)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def assert_is(encoded, image, **how):
    """The encoded bytes come out as `image`, in its dtype."""
    found = pixels.decode(encoded, "x", **how)
    assert found.dtype == image.dtype
    np.testing.assert_array_equal(found, image.reshape(*image.shape[:2], -1))


def test_16_bit_pngs_keep_every_value():
    """A ramp of 0..65535: gray, colour (red first), each with alpha; and colour as OpenCV writes it."""
    alpha = RAMP.T[::-1]
    assert_is(png16(RAMP, 0), RAMP)
    assert_is(png16(COLOURS, 2), COLOURS)
    assert_is(png16(np.dstack([COLOURS, alpha]), 6), np.dstack([COLOURS, alpha]))
    assert_is(png16(np.dstack([RAMP, alpha]), 4), np.dstack([RAMP, alpha]))
    assert_is(cv2.imencode(".png", COLOURS[..., ::-1])[1].tobytes(), COLOURS)
    assert_is(png16(COLOURS, 2), COLOURS, channels=3)  # nothing to convert
    transparent = struct.pack(">I", 6) + b"tRNS" + bytes(6)  # one colour is see-through: no fourth channel
    assert_is(png16(COLOURS, 2, transparent + struct.pack(">I", zlib.crc32(transparent[4:]))), COLOURS)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_arrays_keep_every_value(dtype):
    """.npy in every storage dtype, gray and bands, in the other byte order too."""
    for array in (RAMP.astype(dtype), BANDS.astype(dtype)):
        assert_is(npy(array), array)
        assert_is(npy(array.astype(array.dtype.newbyteorder(">"))), array)


def test_tiffs_keep_every_value(tifffile):
    """Gray, colour and 13 bands; band after band or together; any byte order; compressed; floats; channels as pages."""
    together = {"photometric": "minisblack", "planarconfig": "contig"}
    assert_is(tiff(tifffile, RAMP), RAMP)
    assert_is(tiff(tifffile, COLOURS, photometric="rgb"), COLOURS)
    assert_is(tiff(tifffile, BANDS, **together), BANDS)
    assert_is(tiff(tifffile, BANDS, byteorder=">", compression="zlib", **together), BANDS)
    assert_is(tiff(tifffile, BANDS.astype(np.float32), bigtiff=True, **together), BANDS.astype(np.float32))
    apart = np.moveaxis(BANDS, 2, 0)
    assert_is(tiff(tifffile, apart, photometric="minisblack", planarconfig="separate"), BANDS)
    assert_is(tiff(tifffile, apart, imagej=True, metadata={"axes": "CYX"}), BANDS)


def test_an_overview_is_no_second_image(tifffile):
    """A TIFF with a smaller copy of itself behind it is one image."""
    out = io.BytesIO()
    with tifffile.TiffWriter(out) as writer:
        writer.write(RAMP, subifds=0)
        writer.write(RAMP[::2, ::2], subfiletype=1)
    assert_is(out.getvalue(), RAMP)


HOLDS = {"png": "L RGB P 1 RGBA", "webp": "RGB RGBA", "jpeg": "L RGB CMYK", "tiff": "L RGB P CMYK 1 RGBA"}  # modes


@pytest.mark.parametrize(("form", "mode"), [(form, mode) for form, modes in HOLDS.items() for mode in modes.split()])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_convert_as_pillow_does(form, mode, channels):
    """8-bit gray, colour, palette, CMYK, one bit, alpha, in whatever form holds them."""
    if form == "tiff":
        pytest.importorskip("tifffile", reason="tifffile is an extra")
    picture = Image.fromarray(RGB).quantize(8) if mode == "P" else Image.fromarray(RGB).convert(mode)
    out = io.BytesIO()
    picture.save(out, form)
    truth = np.asarray(Image.open(out).convert("L" if channels == 1 else "RGB"))
    assert_is(out.getvalue(), truth, channels=channels)


@pytest.mark.parametrize("form", ["png", "webp", "jpeg", "tiff"])
def test_8_bits_as_stored(form):
    """Colour comes out as Pillow reads it, without data.channels."""
    if form == "tiff":
        pytest.importorskip("tifffile", reason="tifffile is an extra")
    out = io.BytesIO()
    Image.fromarray(RGB).save(out, form)
    assert_is(out.getvalue(), np.asarray(Image.open(out)))


def test_the_camera_s_orientation_is_not_applied(tmp_path):
    """EXIF orientation 6 leaves rows and columns as they are stored; the suffix says nothing about the content."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "a.jpg", "png", exif=exif)
    np.testing.assert_array_equal(pixels.read_file(tmp_path / "a.jpg"), RGB)


@pytest.mark.parametrize("array", [BANDS.astype(np.int16), BANDS.astype(float), BANDS > 5, BANDS.astype(np.int32)])
def test_other_dtypes_are_refused(array):
    """Never converted: the dtype, the shape and what to do."""
    with pytest.raises(ConfigError, match=rf"x is {array.dtype} \(6, 9, 13\); .* convert it once"):
        pixels.decode(npy(array), "x")


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (5, 5, 0), (0, 5)])
def test_an_image_without_pixels_is_a_bad_file(shape):
    """A crop of it would be a division by zero, or black."""
    out = io.BytesIO()
    np.save(out, np.zeros(shape, np.uint8))
    with pytest.raises(pixels.Unreadable, match=r"^x\.npy has no pixels: \("):
        pixels.decode(out.getvalue(), "x.npy")


def test_what_is_not_one_image_is_refused(tifffile):
    """Stacks of pages, animations, arrays of four dimensions, pickles; the file is named."""
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    moving = io.BytesIO()
    frames[0].save(moving, "webp", save_all=True, append_images=frames[1:])
    out = io.BytesIO()
    np.save(out, np.array([{}]), allow_pickle=True)
    for encoded, message in (
        (tiff(tifffile, np.moveaxis(BANDS, 2, 0), photometric="minisblack"), r"x is a TIFF of 13 pages \(axes QYX\)"),
        (moving.getvalue(), "x holds 2 frames"),
        (npy(np.zeros((2, 3, 4, 5), np.uint8)), r"x is uint8 \(2, 3, 4, 5\)"),
        (out.getvalue(), "x is no whole array of numbers"),
    ):
        with pytest.raises(ConfigError, match=message):
            pixels.decode(encoded, "x")


@pytest.mark.parametrize(
    ("encoded", "channels", "message"),
    [
        (png16(COLOURS, 2), 1, "x holds uint16 of 3 channels, and data.channels=1"),
        (npy(BANDS), 3, "x holds uint16 of 13 channels, and data.channels=3"),
        (npy(BANDS[..., 0].astype(np.float32)), 3, "x holds float32 of 1 channels"),
    ],
)
def test_deep_images_are_not_converted(encoded, channels, message):
    """data.channels never clips or reduces."""
    with pytest.raises(ConfigError, match=message):
        pixels.decode(encoded, "x", channels=channels)


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bands", [3, 4, 5])
def test_bands_of_8_bits_are_left_alone_or_refused_as_bands(tifffile, bands, channels, planar):
    """Three bands that no one calls RGB are the three channels asked for; others are refused, as bands of 8 bits."""
    image = RNG.integers(0, 256, (6, 9, bands), dtype=np.uint8)
    stored = image if planar == "contig" else np.moveaxis(image, 2, 0)
    encoded = tiff(tifffile, stored, photometric="minisblack", planarconfig=planar)
    assert_is(encoded, image)
    if bands == channels:
        assert_is(encoded, image, channels=channels)
        return
    with pytest.raises(
        ConfigError, match=rf"x (is a TIFF of|holds uint8 of) {bands} .*channels={channels}.*out$"
    ) as no:
        pixels.decode(encoded, "x", channels=channels)
    assert "no image" not in str(no.value) and "8-bit pictures" not in str(no.value)


def test_unreadable_files_are_named(tmp_path):
    """A text, an empty file, a cut JPEG, a cut 16-bit PNG, a cut array, no file: one line with the path."""
    jpeg = io.BytesIO()
    Image.fromarray(np.tile(RGB, (40, 40, 1))).save(jpeg, "jpeg")
    for name, content, message in (
        ("text.jpg", b"no image", "is no image that can be read"),
        ("empty.png", b"", "is empty"),
        ("cut.jpg", jpeg.getvalue()[:900], "cannot be read: .*truncated"),
        ("cut.png", png16(COLOURS, 2)[:40], "cannot be read"),
        ("head.png", png16(COLOURS, 2)[:20], "cannot be read|is no image"),
        ("cut.npy", npy(BANDS)[:-8], "is no whole array of numbers"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(pixels.Unreadable, match=rf"{name} ({message})") as caught:
            pixels.read_file(tmp_path / name)
        assert "\n" not in str(caught.value) and "IndexError" not in str(caught.value)
        assert str(caught.value).endswith(f"{name} {caught.value.why}")
    with pytest.raises(pixels.Unreadable, match="mine is not there"):
        pixels.read_file(tmp_path / "absent.png", where="mine")


@pytest.mark.parametrize(("failures", "tries"), [(2, 3), (3, 3)])
def test_a_disk_that_does_not_answer_says_nothing_of_the_file(tmp_path, monkeypatch, failures, tries):
    """Three tries; then the disk's own error, and none of a bad file's."""
    Image.fromarray(RGB).save(tmp_path / "a.png")
    calls, waits, whole = [], [], pixels._whole

    def failing(path):
        calls.append(path)
        if len(calls) <= failures:
            raise OSError(errno.EIO, "Input/output error")
        return whole(path)

    monkeypatch.setattr(pixels, "_whole", failing)
    monkeypatch.setattr(pixels.time, "sleep", waits.append)
    if failures < tries:
        assert_is((tmp_path / "a.png").read_bytes(), pixels.read_file(tmp_path / "a.png"))
    else:
        with pytest.raises(OSError, match="Input/output error"):
            pixels.read_file(tmp_path / "a.png")
    assert len(calls) == tries and waits == list(pixels.WAITS)


def test_what_another_try_would_say_again_is_said_at_once(tmp_path, monkeypatch):
    """No permission, and a folder in the place of a file: errors of the machine's, without a pause."""
    monkeypatch.setattr(pixels.time, "sleep", lambda _: pytest.fail("waited"))
    with pytest.raises(IsADirectoryError):
        pixels.read_file(tmp_path)

    def refused(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(pixels, "_whole", refused)
    with pytest.raises(PermissionError):
        pixels.read_file(tmp_path / "a.png")


@pytest.mark.parametrize("form", ["gif", "png"])
def test_damage_comes_before_kind(form):
    """A cut palette image is bad whatever is asked for, though a whole one needs data.channels=3."""
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)).convert("P").save(out, form)
    for channels in (None, 3):
        with pytest.raises(pixels.Unreadable, match="x cannot be read: .*truncated"):
            pixels.decode(out.getvalue()[:-400], "x", channels=channels)
    with pytest.raises(ConfigError, match=r"set data\.channels=3") as caught:
        pixels.decode(out.getvalue(), "x")
    assert not isinstance(caught.value, pixels.Unreadable)


@pytest.mark.parametrize(
    ("raised", "error", "message"),
    [
        (MemoryError("8 GiB"), MemoryError, "8 GiB"),
        (ImportError("no cv2"), ImportError, "no cv2"),
        (ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package"), ConfigError, r"moco_jax\[tiff\]"),
    ],
)
def test_what_the_machine_lacks_is_no_fault_of_the_file(monkeypatch, raised, error, message):
    """Memory, a library, a compression's codec: files would be replaced for want of it."""

    def lacking(*_):
        raise raised

    monkeypatch.setattr(pixels, "_decoded", lacking)
    with pytest.raises(error, match=message) as caught:
        pixels.decode(b"anything", "x")
    assert not isinstance(caught.value, pixels.Unreadable)


def test_without_tifffile_a_tiff_says_what_to_install(monkeypatch):
    """The extra is named."""
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(ConfigError, match=r'x is a TIFF, which needs tifffile: pip install "moco_jax\[tiff\]"'):
        pixels.decode(b"II*\0" + bytes(20), "x")


def test_formats_are_told_by_content():
    """Each of the five, and nothing for a text."""
    found = [
        pixels.format_of(x) for x in (npy(RAMP), png16(RAMP, 0), b"MM\0*", b"II+\0", b"RIFF\0\0\0\0WEBPVP8", b"text")
    ]
    assert found == ["npy", "PNG", "TIFF", "TIFF", "WebP", ""]


def test_colours_of_a_tiff_in_another_space_are_converted_or_refused(tmp_path):
    """YCbCr as Pillow's RGB with data.channels=3 and refused without; white that is 0 is turned with a conversion."""
    image = Image.new("RGB", (8, 8), (200, 30, 40))
    image.convert("YCbCr").save(tmp_path / "a.tif")
    with pytest.raises(ConfigError, match=r"a.tif is a TIFF of YCBCR colours; set data.channels=3"):
        pixels.read_file(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as wanted:
        np.testing.assert_array_equal(
            pixels.read_file(tmp_path / "a.tif", channels=3), np.asarray(wanted.convert("RGB"))
        )
    image.convert("LAB").save(tmp_path / "c.tif")
    for channels in (None, 1, 3):  # no advice that leads from one refusal to the next
        with pytest.raises(ConfigError, match=r"c.tif is a TIFF of CIELAB colours, .*; store it as RGB$"):
            pixels.read_file(tmp_path / "c.tif", channels=channels)
    tifffile = pytest.importorskip("tifffile")
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8)
    tifffile.imwrite(tmp_path / "b.tif", ramp, photometric="miniswhite")
    assert_is((tmp_path / "b.tif").read_bytes(), ramp)
    assert_is((tmp_path / "b.tif").read_bytes(), 255 - ramp, channels=1)


@pytest.mark.parametrize("subsampling", [(1, 1), (2, 2)])
@pytest.mark.parametrize("channels", [None, 1, 3])
def test_ycbcr_inside_jpeg_is_rgb(tifffile, subsampling, channels):
    """A TIFF in JPEG holds YCbCr as any JPEG file does, and comes out as Pillow reads it, whatever data.channels."""
    pytest.importorskip("imagecodecs", reason="imagecodecs is an extra")
    y, x = np.mgrid[:64, :80]
    image = np.stack([x * 3, y * 4, x + y], 2)  # smooth, as JPEG likes it
    encoded = tiff(tifffile, image.astype(np.uint8), photometric="rgb", compression="jpeg", subsampling=subsampling)
    with Image.open(io.BytesIO(encoded)) as truth:
        assert_is(encoded, np.asarray(truth.convert("L" if channels == 1 else "RGB")), channels=channels)
