"""What reading every image of a folder says, against values computed from the arrays that were written."""

import time

import numpy as np
import pytest
from PIL import Image

from moco_jax.config import ConfigError
from moco_jax.data import pixels, survey, threads

RNG = np.random.default_rng(0)


def look(folder):
    names = sorted(p.name for p in folder.iterdir())
    return survey.survey(names, lambda i: survey.look_at_file(folder / names[i], names[i]), workers=2)


def written(folder, images):
    for name, image in images.items():
        Image.fromarray(image).save(folder / name)
    return look(folder)


def test_mean_and_std_count_every_image_alike(tmp_path):
    """Images of different sizes weigh the same, as each gives a view of the same size; values exact to rounding."""
    small, large = (RNG.integers(0, 256, (n, n, 3), np.uint8) for n in (4, 40))
    found = survey.summary(written(tmp_path, {"a.png": small, "b.png": large // 2}), None)
    both = [small.reshape(-1, 3).astype(float), (large // 2).reshape(-1, 3).astype(float)]
    mean = np.mean([x.mean(0) for x in both], axis=0)
    second = np.mean([(x**2).mean(0) for x in both], axis=0)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.std, np.sqrt(second - mean**2), rtol=1e-9)
    assert (found.low, found.high) == (min(x.min() for x in both), max(x.max() for x in both))
    assert found.kind == survey.Kind(3, "uint8")


def test_mixed_eight_bit_images_need_three_channels(tmp_path):
    """Gray, colour and palette, or palettes alone: data.channels=3, and statistics of what Pillow converts to."""
    gray, colour = RNG.integers(0, 256, (6, 6), np.uint8), RNG.integers(0, 256, (6, 6, 3), np.uint8)
    Image.fromarray(colour).convert("P").save(tmp_path / "c.png")
    assert look(tmp_path).channels() == 3
    found = written(tmp_path, {"a.png": gray, "b.png": colour})
    assert found.channels() == 3
    assert dict(found.kinds) == {"1 channel uint8": 1, "3 channels uint8": 1, "palette uint8": 1}
    rgb = [np.asarray(Image.open(tmp_path / n).convert("RGB"), float) for n in ("a.png", "b.png", "c.png")]
    np.testing.assert_allclose(survey.summary(found, 3).mean, np.mean([x.mean((0, 1)) for x in rgb], axis=0))


def test_one_kind_is_left_as_it_is(tmp_path):
    """16 bits of one channel need no conversion, and mixed with 8 bits they can have none."""
    deep = RNG.integers(0, 65536, (5, 5), np.uint16)
    found = written(tmp_path, {"a.png": deep})
    assert found.channels() is None
    assert survey.summary(found, None).high == deep.max()
    with pytest.raises(ConfigError, match=r"several kinds .*1 of .*a\.png is not 8-bit"):
        written(tmp_path, {"b.png": deep.astype(np.uint8)}).channels()


def test_what_data_channels_gives_is_what_was_looked_at(tmp_path):
    """TIFFs of three bands, of YCbCr inside JPEG and of plain YCbCr: the statistics of RGB are of what is read then."""
    tifffile = pytest.importorskip("tifffile", reason="tifffile is an extra")
    pytest.importorskip("imagecodecs", reason="imagecodecs is an extra")
    colour = RNG.integers(0, 256, (16, 16, 3), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", colour, photometric="minisblack", planarconfig="contig")
    tifffile.imwrite(tmp_path / "b.tif", colour, photometric="rgb", compression="jpeg")
    Image.fromarray(colour).convert("YCbCr").save(tmp_path / "c.tif")
    found = look(tmp_path)
    assert dict(found.kinds) == {"3 channels uint8": 2, "palette or YCbCr uint8": 1} and found.channels() == 3
    for one in found.looks:
        np.testing.assert_array_equal(one.rgb.mean, pixels.read_file(tmp_path / one.name, channels=3).mean((0, 1)))


def test_bands_of_8_bits_cannot_be_made_alike(tmp_path):
    """Four bands beside colour: what is named is 8-bit, and the words say what it is not."""
    tifffile = pytest.importorskip("tifffile", reason="tifffile is an extra")
    bands = RNG.integers(0, 256, (6, 6, 4), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", bands, photometric="minisblack", planarconfig="contig")
    Image.fromarray(bands[..., :3]).save(tmp_path / "b.png")
    with pytest.raises(ConfigError, match=r"a\.tif is not 8-bit gray or colour, so that"):
        look(tmp_path).channels()


def test_what_cannot_be_read_is_named_and_the_rest_is_counted(tmp_path):
    """Truncated, empty, no image at all, a wrong suffix (which is read by content); what is whole and of no use."""
    image = RNG.integers(0, 256, (30, 30, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "short.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "misnamed.jpg").write_bytes(whole)
    np.save(tmp_path / "nan.npy", np.full((3, 3, 1), np.nan, np.float32))
    np.save(tmp_path / "wide.npy", np.zeros((3, 3, 1)))
    found = look(tmp_path)
    assert [one.name for one in found.good] == ["good.png", "misnamed.jpg"]
    assert {one.name for one in found.bad} == {"short.png", "empty.jpg", "text.jpg"}
    assert {one.name for one in found.unfit} == {"nan.npy", "wide.npy"}
    assert all(one.name in one.problem for one in found.bad + found.unfit)
    assert "finite" in next(one.problem for one in found.unfit if one.name == "nan.npy")


def test_damage_as_stored_is_damage_whatever_a_conversion_says(tmp_path):
    """Four bands, cut: as RGB they would be refused for their number."""
    tifffile = pytest.importorskip("tifffile", reason="tifffile is an extra")
    tifffile.imwrite(
        tmp_path / "a.tif", RNG.integers(0, 256, (30, 30, 4), np.uint8), photometric="minisblack", planarconfig="contig"
    )
    (tmp_path / "a.tif").write_bytes((tmp_path / "a.tif").read_bytes()[:-500])
    (one,) = look(tmp_path).looks
    assert one.bad and "a.tif cannot be read" in one.problem


def test_what_the_disk_does_not_give_is_no_bad_file(tmp_path, monkeypatch):
    """It is named, left out of a page, and not counted among the files that training replaces."""
    written(tmp_path, {"a.png": np.zeros((4, 4), np.uint8), "b.png": np.ones((4, 4), np.uint8)})
    whole = pixels._whole

    def refused(path):
        if path.name == "b.png":
            raise PermissionError(13, "Permission denied")
        return whole(path)

    monkeypatch.setattr(pixels, "_whole", refused)
    found = look(tmp_path)
    assert ([one.problem for one in found.unfit], found.bad) == (["b.png was not read: Permission denied"], [])


def test_duplicates_are_found_by_their_pixels(tmp_path):
    """The same picture in another format is one; another picture of the same size is not; nor is a reshaped one."""
    image = RNG.integers(0, 256, (4, 9, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(image).save(tmp_path / "b.webp", lossless=True)
    Image.fromarray(image.reshape(9, 4, 3)).save(tmp_path / "c.png")
    Image.fromarray(255 - image).save(tmp_path / "d.png")
    assert look(tmp_path).duplicates == [["a.png", "b.webp"]]
    assert [one.format for one in look(tmp_path).looks] == ["PNG", "WebP", "PNG", "PNG"]


def test_an_array_is_looked_at_row_by_row(tmp_path):
    """(N, H, W) of one channel; another dtype is refused with its name."""
    np.save(tmp_path / "a.npy", np.arange(24, dtype=np.uint16).reshape(2, 3, 4))
    listing, at = survey.array(str(tmp_path / "a.npy"))
    found = survey.survey(listing.paths, at, workers=1)
    assert [one.size for one in found.looks] == [(3, 4), (3, 4)]
    assert survey.summary(found, None).mean == (11.5,)
    np.save(tmp_path / "b.npy", np.zeros((2, 3, 4)))
    with pytest.raises(ConfigError, match="float64"):
        survey.array(str(tmp_path / "b.npy"))


def test_few_looks_wait_in_memory():
    """The threads are no further ahead of who takes the looks than so many, also of a million images."""
    begun, ahead = [], []

    def look(index):
        begun.append(index)
        return survey.Look(str(index))

    def seen():
        time.sleep(0 if ahead else 0.3)
        ahead.append(len(begun))

    names = list(map(str, range(2 * threads.AT_ONCE)))
    assert [one.name for one in survey.survey(names, look, workers=2, seen=seen).looks] == names
    assert ahead[0] <= threads.AT_ONCE + 1 and len(ahead) == len(begun) == len(names)
