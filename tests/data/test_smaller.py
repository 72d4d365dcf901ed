"""Images made smaller: format, channels, dtype and meaning stay; what is damaged is named."""

import io

import numpy as np
import pytest
from PIL import Image, ImageCms, JpegImagePlugin

from moco_jax.config import ConfigError
from moco_jax.data import crops, pixels, smaller
from tests.data.test_pixels import png16

RAMP = np.add.outer(np.arange(40), 2 * np.arange(60))  # 40 rows, 60 columns
RGB = np.stack([RAMP, RAMP[::-1], 170 - RAMP], 2).astype(np.uint8)
BANDS = np.stack([RAMP * (b + 1) * 20 for b in range(13)], 2).astype(np.uint16)


def shrunk(encoded, **how):
    """(bytes, their pixels) of an image with a shorter side of 20 pixels."""
    out = smaller.smaller(encoded, "x", **{"short_side": 20, **how})
    return out, pixels.decode(out, "x")


def opened(encoded):
    return Image.open(io.BytesIO(encoded))


def test_a_jpeg_stays_close_and_keeps_its_colours(encoded):
    """Within three levels of the resized pixels, 20 rows of 30, without halving the resolution of colour."""
    out, image = shrunk(encoded(Image.fromarray(RGB), "jpeg"))
    expected = crops.shorter_side(pixels.decode(encoded(Image.fromarray(RGB), "jpeg"), "x"), 20, filter="bicubic")
    assert image.shape == (20, 30, 3) and np.abs(image.astype(int) - expected).mean() < 1.5
    assert opened(out).format == "JPEG" and JpegImagePlugin.get_sampling(opened(out)) == 0


def test_quality_is_what_was_asked_for(encoded):
    """Fewer bytes and other pixels at a lower one."""
    noisy = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)), "jpeg")
    assert len(shrunk(noisy, quality=30)[0]) < 0.7 * len(shrunk(noisy)[0])


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_jpeg_keeps_its_mode(encoded, mode):
    """Gray stays one channel; CMYK stays four, with the same meaning, so that it becomes the same RGB."""
    source = encoded(Image.fromarray(RGB).convert(mode), "jpeg")
    out, _ = shrunk(source)
    assert opened(out).mode == mode
    apart = np.abs(
        pixels.decode(out, "x", channels=3).astype(int) - crops.shorter_side(pixels.decode(source, "x", channels=3), 20)
    )
    assert apart.mean() < 4


def test_what_is_small_enough_is_left_alone(encoded):
    """Up to and with the shorter side asked for; one pixel more is made smaller."""
    for short_side, same in ((40, True), (41, True), (39, False)):
        assert (smaller.smaller(encoded(RGB), "x", short_side=short_side) is None) == same


def test_orientation_is_dropped_and_the_profile_kept(encoded):
    """Pixels as stored and no tag that turns them; numbers beside the profile that explains them."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x0112] = 6
    for form in ("JPEG", "PNG", "WEBP"):
        source = io.BytesIO()
        Image.fromarray(RGB).save(source, form, exif=exif, icc_profile=profile)
        out, image = shrunk(source.getvalue())
        assert image.shape == (20, 30, 3) and opened(out).format == form
        assert not opened(out).getexif() and opened(out).info["icc_profile"] == profile


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
@pytest.mark.parametrize("form", ["PNG", "BMP", "PPM", "WEBP"])
def test_formats_without_loss_keep_every_value(encoded, form, mode):
    """PNG, BMP, PPM, and WebP that was without loss: the pixels of the resized image, whatever its channels."""
    if (form, mode) in {("BMP", "LA"), ("PPM", "LA"), ("PPM", "RGBA"), ("WEBP", "L"), ("WEBP", "LA")}:
        pytest.skip("there is no such thing")
    source = io.BytesIO()
    picture = Image.fromarray(np.dstack([RGB, (RAMP * (RAMP > 60)).astype(np.uint8)])).convert(mode)
    picture.save(source, form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    out, image = shrunk(source.getvalue())
    assert opened(out).format == form
    expected = crops.shorter_side(pixels.decode(source.getvalue(), "x"), 20, filter="bicubic")
    np.testing.assert_array_equal(image, expected)


def test_palettes_become_colour_and_bits_gray(encoded):
    """Numbers of a palette cannot be averaged: its colours are, and an animation is refused as it always is."""
    palette = encoded(Image.fromarray(RGB).quantize(16))
    expected = crops.shorter_side(pixels.decode(palette, "x", channels=3), 20, filter="bicubic")
    np.testing.assert_array_equal(shrunk(palette)[1], expected)
    np.testing.assert_array_equal(shrunk(encoded(Image.fromarray(RGB).quantize(16), "gif"))[1], expected)
    bits, image = shrunk(encoded(Image.fromarray(RAMP > 80)))
    assert opened(bits).mode == "L" and image.shape == (20, 30, 1)
    frames = io.BytesIO()
    Image.fromarray(RGB).save(frames, "GIF", save_all=True, append_images=[Image.fromarray(RGB[::-1])])
    with pytest.raises(ConfigError, match="x holds 2 frames"):
        shrunk(frames.getvalue())
    with pytest.raises(ConfigError, match="x cannot be read"):
        shrunk(palette[:-40])
    with pytest.raises(ConfigError, match="x is int32"):
        shrunk(b"P5 60 40 65535 " + bytes(2 * 40 * 60))


@pytest.mark.parametrize("mode", ["P", "YCbCr"])
def test_tiffs_whose_numbers_are_no_colours_become_colour(encoded, mode):
    """As palettes of other formats do."""
    pytest.importorskip("tifffile", reason="tifffile is an extra")
    source = encoded(Image.fromarray(RGB).convert(mode), "tiff")
    expected = crops.shorter_side(pixels.decode(source, "x", channels=3), 20, filter="bicubic")
    np.testing.assert_array_equal(shrunk(source)[1], expected)


@pytest.mark.parametrize(("colour", "count"), [(0, 1), (2, 3), (6, 4)])
def test_16_bit_pngs_stay_so(colour, count):
    """Gray, colour and colour with alpha: all values, red first, none beyond those there."""
    source = np.ascontiguousarray(BANDS[:, :, 5 : 5 + count])
    out, image = shrunk(png16(source, colour))
    assert out.startswith(b"\x89PNG") and out[24] == 16
    np.testing.assert_array_equal(image, crops.shorter_side(source, 20))
    with pytest.raises(ConfigError, match="x is a 16-bit PNG of gray with alpha"):
        shrunk(png16(np.ascontiguousarray(BANDS[:, :, :2]), 4))


@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 1), (40, 60, 13)])
def test_npy_stays_so(shape):
    """Dtype and number of axes too."""
    array = np.linspace(-3, 5, int(np.prod(shape)), dtype=np.float32).reshape(shape)
    source = io.BytesIO()
    np.save(source, array)
    out, image = shrunk(source.getvalue())
    loaded = np.load(io.BytesIO(out))
    assert loaded.dtype == np.float32 and loaded.shape == (20, 30, *shape[2:])
    np.testing.assert_array_equal(image, crops.shorter_side(array.reshape(40, 60, -1), 20))


@pytest.mark.parametrize(
    ("image", "how"),
    [
        (BANDS, {"photometric": "minisblack", "planarconfig": "contig"}),
        (np.moveaxis(BANDS, 2, 0), {"photometric": "minisblack", "planarconfig": "separate"}),
        (np.moveaxis(BANDS[:, :, :5], 2, 0), {"photometric": "minisblack", "imagej": True}),
        (RGB, {"photometric": "rgb"}),
        (np.dstack([RGB, RGB[:, :, :1]]), {"photometric": "rgb", "extrasamples": ["unassalpha"]}),
        (np.dstack([RGB, RGB[:, :, :1]]), {"photometric": "separated"}),
        (RGB[:, :, 0], {"photometric": "miniswhite"}),
        (BANDS[:, :, 0].astype(np.float32), {"photometric": "minisblack"}),
    ],
)
def test_tiffs_stay_so(image, how):
    """Many bands however they lie, colour, alpha, CMYK, white as 0, floats: values, and what conversions make of it."""
    tifffile = pytest.importorskip("tifffile", reason="tifffile is an extra")
    source = io.BytesIO()
    tifffile.imwrite(source, image, **how)
    out, found = shrunk(source.getvalue())
    stored = pixels.decode(source.getvalue(), "x")
    filter = "bicubic" if stored.dtype == np.uint8 else "bilinear"
    np.testing.assert_array_equal(found, crops.shorter_side(stored, 20, filter=filter))
    assert pixels.format_of(out) == "TIFF"
    if stored.dtype == np.uint8:
        rgb = pixels.decode(source.getvalue(), "x", channels=3)
        apart = pixels.decode(out, "x", channels=3) - crops.shorter_side(rgb, 20, filter=filter).astype(int)
        assert np.abs(apart).max() <= 2


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_damage_is_named(encoded, damage):
    """Also of images that would be small enough to be copied as they are."""
    whole = encoded(Image.fromarray(RGB), "jpeg")
    broken = {"cut": whole[: len(whole) // 2], "garbage": b"\xff\xd8\xff" + b"x" * 99, "empty": b""}[damage]
    for short_side in (20, 500):
        with pytest.raises(ConfigError, match="^x ") as caught:
            smaller.smaller(broken, "x", short_side=short_side)
        assert "\n" not in str(caught.value)
