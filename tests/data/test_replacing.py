"""Bad files are replaced: those that `inspect` calls bad, alike on any host, thread, order and path, up to a share."""

import io
import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from moco_jax.config import ConfigError
from moco_jax.data import files, loader, opening, order, pixels, replacing, sources, survey
from tests.data.test_loader import CROPS
from tests.data.test_pixels import npy, png16, tiff

RNG = np.random.default_rng(0)
WHOLE = RNG.integers(0, 256, (24, 24, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (24, 24, 3), np.uint16)


def saved(form, mode="RGB", **how):
    """A picture as the bytes of a file."""
    out = io.BytesIO()
    Image.fromarray(WHOLE).convert(mode).save(out, form, **how)
    return out.getvalue()


def overwritten(content):
    """The same length, with noise in the middle."""
    middle = len(content) // 2
    return content[: middle - 100] + RNG.bytes(200) + content[middle + 100 :]


# name: the bytes of a damaged file; None: it was deleted since the folder was listed
DAMAGE = {
    "empty.jpg": b"",
    "one_byte.png": b"\x89",
    "text.jpg": b"<html>404 not found</html>",
    "garbage.png": RNG.bytes(3000),
    "zeros.jpg": bytes(3000),
    "zip.png": b"PK\x03\x04" + RNG.bytes(500),
    "head.jpg": saved("jpeg")[:30],
    "half.jpg": saved("jpeg")[: len(saved("jpeg")) // 2],
    "tail.jpg": saved("jpeg")[:-10],
    "progressive.jpg": saved("jpeg", progressive=True)[:-300],
    "cmyk.jpg": saved("jpeg", "CMYK")[:-300],
    "gray.jpg": saved("jpeg", "L")[:-100],
    "half.png": saved("png")[:900],
    "noise.png": overwritten(saved("png")),
    "palette.png": saved("png", "P")[:900],
    "deep.png": png16(DEEP, 2)[:2000],
    "deep_noise.png": overwritten(png16(DEEP, 2)),
    "half.webp": saved("webp", lossless=True)[:900],
    "half.bmp": saved("bmp")[:900],
    "half.gif.png": saved("gif")[:500],
    "half.npy": npy(WHOLE)[:900],
    "head.npy": npy(WHOLE)[:20],
    "objects.npy": npy(np.array([1, "a"], object)),
    "magic.tif": b"II*\0" + RNG.bytes(100),
    "magic.npy": b"\x93NUMPY" + RNG.bytes(100),
    "gone.jpg": None,
}
# Whole, if not by their suffix: Pillow reads them, and so does training.
FINE = {"png.jpg": saved("png"), "jpeg.tif": saved("jpeg"), "mpo.jpg": saved("jpeg") + b"more", "webp": saved("webp")}


def folder(root, damage, good=8):
    """A folder of good PNGs between the damaged files, listed before one of these is deleted."""
    root.mkdir()
    for i in range(good):
        Image.fromarray(np.full((24, 24, 3), i, np.uint8)).save(root / f"{'amz'[i % 3]}{i}.png")
    for name, content in damage.items():
        (root / name).write_bytes(content or b"")
    listing = files.list_folder(root)
    for name, content in damage.items():
        if content is None:
            (root / name).unlink()
    return listing


@pytest.mark.parametrize("channels", [None, 3])
def test_training_replaces_what_inspect_calls_bad(tmp_path, channels):
    """A table of kinds of damage, as stored and with a conversion: the same files by both, whole ones by neither."""
    tifffile = pytest.importorskip("tifffile", reason="tifffile is an extra")
    strips = tiff(tifffile, DEEP, photometric="rgb", compression="zlib", rowsperstrip=4)
    tiffs = {"half.tif": strips[: len(strips) // 2], "plain.tif": tiff(tifffile, DEEP, photometric="rgb")[:-9]}
    tiffs["pillow.tif"] = saved("tiff", "P")[:-200]
    listing = folder(tmp_path / "p", DAMAGE | FINE | tiffs)
    looks = [survey.look_at_file(listing.root / path, path) for path in listing.paths]
    shown = replacing.Replacing(opening.of_listing(listing, "train", name="p", channels=channels), 0.9)
    images = list(shown)
    expected = set(DAMAGE | tiffs)
    assert {one.name for one in shown.bad} == {one.name for one in looks if one.bad} == expected
    assert not [one for one in looks if one.problem and not one.bad]
    assert {str(image.shape) for image in images} == {"(24, 24, 3)"}
    for one in shown.bad:
        assert one.name == listing.paths[one.record] and one.why and one.name not in one.why


def numbered(tmp_path, bad, good=20):
    """A source of flat gray images, image i of value i, of which `bad` are damaged."""
    (tmp_path / "p").mkdir()
    for i in range(good):
        if i in bad:
            (tmp_path / f"p/{i}.png").write_bytes(b"no image")
        else:
            Image.fromarray(np.full((6, 6), i, np.uint8)).save(tmp_path / f"p/{i}.png")
    return opening.of_listing(files.list_folder(tmp_path / "p"), "train", name="p")


def expected(bad, records=20, groups=None):
    """What each record shows: itself, or the first of its stand-ins that is good."""
    out = np.arange(records)
    for record in bad:
        out[record] = next(i for i in order.stand_ins(record, records, groups) if i not in bad)
    return out


BAD = (0, 1, 2, 3, 11, 19)


@pytest.mark.parametrize("turn", [list, lambda r: list(reversed(r)), lambda r: RNG.permutation(list(r)).tolist()])
def test_a_stand_in_is_a_function_of_the_record_alone(tmp_path, turn):
    """Whatever was read before, and again when it is known: record 0 too, and others for its neighbours."""
    shown = replacing.Replacing(numbered(tmp_path, BAD), 0.3)
    for _ in range(2):
        found = {i: int(shown[i][0, 0, 0]) for i in turn(range(20))}
        np.testing.assert_array_equal([found[i] for i in range(20)], expected(BAD))
    assert sorted(one.record for one in shown.bad) == list(BAD)
    assert len({found[i] for i in range(4)}) == 4


def stream(source, path="streamed", **changes):
    arguments = {"seed": 5, "batch_size": 8, "positions": np.arange(8), "size": 4, "workers": 2}
    return list(loader.batches(source, CROPS, path=path, first_step=0, last_step=6, **arguments | changes))


def test_hosts_threads_and_a_late_start_change_nothing(tmp_path):
    """Two hosts that share nothing, any number of threads: the images of one host, in the slots of the same ids."""
    source = numbered(tmp_path, BAD)
    fresh = lambda: replacing.Replacing(source, 0.3)  # noqa: E731
    whole = stream(fresh())
    halves = [stream(fresh(), positions=p, workers=w) for p, w in ((np.arange(4), 1), (np.arange(4, 8), 5))]
    late = stream(fresh(), workers=1)[3:]
    table = expected(BAD)
    ids = [batch["ids"] for batch in stream(fresh(), path="resident")]
    for step, (batch, a, b) in enumerate(zip(whole, *halves, strict=True)):
        np.testing.assert_array_equal(batch["ids"], ids[step])
        for view in range(2):
            raw = batch["raw"][view]
            np.testing.assert_array_equal(raw[:, 0, 0, 0], table[ids[step][:, view]])
            np.testing.assert_array_equal(raw, np.concatenate([a["raw"][view], b["raw"][view]]))
            if step >= 3:
                np.testing.assert_array_equal(raw, late[step - 3]["raw"][view])
    assert set(np.concatenate(ids).ravel()) >= set(BAD)


@pytest.mark.parametrize("workers", [1, 4])
def test_resident_images_have_the_same_stand_ins(tmp_path, workers, monkeypatch):
    """Slot i holds what record i shows on the streamed path."""
    monkeypatch.setattr(loader, "CHUNK", 3)
    images = loader.resident(replacing.Replacing(numbered(tmp_path, BAD), 0.3), workers)["images"]
    np.testing.assert_array_equal(images[:, 0, 0, 0], expected(BAD))


def test_the_views_of_a_pair_stay_of_one_group(tmp_path):
    """The nearest good one of the group; where none is left, one and the same image for all of it."""
    bad, groups = (3, 4, 8, 9, 10, 11), np.arange(20) // 4
    shown = replacing.Replacing(numbered(tmp_path, bad), 0.3, groups)
    found = np.array([shown[i][0, 0, 0] for i in range(20)])
    np.testing.assert_array_equal(found, expected(bad, groups=groups))
    assert (found[3], found[4]) == (2, 5) and len(set(found[8:12])) == 1


@pytest.mark.parametrize(
    ("limit", "bad", "found"), [(0.1, 2, None), (0.1, 3, 3), (0.0, 1, 1), (0.0, 0, None), (0.29, 6, 6), (0.3, 6, None)]
)
def test_above_the_share_every_read_says_so_with_the_list(tmp_path, limit, bad, found):
    """Exactly at it nothing happens; 0 allows none. Each record counts once, however often it is met."""
    shown = replacing.Replacing(numbered(tmp_path, range(bad)), limit)
    if found is None:
        assert len([*shown, *shown]) == 40 and len(shown.bad) == bad
        return
    for _ in range(2):
        with pytest.raises(ConfigError, match=rf"^{found} of the 20 images of p \(train\) cannot be read") as caught:
            list(shown)
    assert all(f"{i}.png (is no image" in str(caught.value) for i in range(bad))
    with pytest.raises(ConfigError, match="cannot be read, more than data.max_bad_fraction"):
        stream(shown)


def test_the_share_is_compared_as_it_is_written():
    """29 of 100 are not more than 0.29, though 0.29 * 100 is less than 29."""

    class Damaged(sources.ArraySource):
        def __getitem__(self, index):
            if index < 29:
                raise pixels.Unreadable("cut")
            return super().__getitem__(index)

    shown = replacing.Replacing(Damaged(np.zeros((100, 2, 2, 1), np.uint8)), 0.29)
    assert len(list(shown)) == 100 and len(shown.bad) == 29


def test_a_long_list_names_ten(tmp_path):
    """And how many more there are."""
    shown = replacing.Replacing(numbered(tmp_path, range(15), 16), 0.75)
    with pytest.raises(ConfigError, match=r"13 of the 16 .* and 3 more; bring them back"):
        list(shown)


def test_nothing_left_is_an_error_and_no_endless_search(tmp_path):
    """Even where all may be bad."""
    shown = replacing.Replacing(numbered(tmp_path, range(5), 5), 1.0)
    with pytest.raises(ConfigError, match=r"none of the 5 images of p \(train\) can be read: "):
        shown[2]


def test_threads_count_a_record_once(tmp_path):
    """Many at once on the same bad ones; news come once each, whoever asks."""
    shown = replacing.Replacing(numbered(tmp_path, BAD), 0.3)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda i: int(shown[i][0, 0, 0]), list(range(20)) * 20))
    np.testing.assert_array_equal(found, np.tile(expected(BAD), 20))
    assert len(shown.bad) == len(BAD) == len(shown.news()) and shown.news() == []
    np.testing.assert_array_equal(shown.good, np.setdiff1d(np.arange(20), BAD))


class Own(sources.ArraySource):
    """A user's source, one record of which fails by an error."""

    error: Exception = pixels.Unreadable("scanned upside down")

    def __getitem__(self, index):
        if index == 2:
            raise self.error
        return super().__getitem__(index)


def test_a_source_of_ones_own_says_what_is_bad():
    """By `pixels.Unreadable`; any other error stops the run and is no bad file."""
    images = np.arange(6, dtype=np.uint8).repeat(16).reshape(6, 4, 4, 1)
    shown = replacing.Replacing(Own(images, list(range(6))), 0.5)
    assert sources.read(shown, 2)[0, 0, 0] == expected([2], 6)[2]
    assert shown.bad == [replacing.Bad(2, "record 2", "scanned upside down")]
    assert (shown.name, shown.classes, shown.names(), shown.groups()) == ("arrays", 6, None, None)
    assert isinstance(shown, sources.Source) and sources.origin_of(shown) is None
    broken = Own(images)
    broken.error = OSError("stale file handle")
    shown = replacing.Replacing(broken, 0.5)
    with pytest.raises(sources.ReadError, match="arrays: record 2 cannot be read: OSError: stale file handle"):
        sources.read(shown, 2)
    assert shown.bad == []


def test_another_kind_is_no_bad_file(tmp_path):
    """16 bits among 8, a palette, values that are not finite: errors that name it, beside a first file that is bad."""
    source = numbered(tmp_path, [0])
    Image.fromarray(np.full((6, 6), 700, np.uint16)).save(tmp_path / "p/5.png")
    Image.fromarray(WHOLE).convert("P").save(tmp_path / "p/6.png")
    shown = replacing.Replacing(source, 0.1)
    with pytest.raises(ConfigError, match=r"record 5 \(5.png\) is uint16 and record 1 \(1.png\) uint8"):
        sources.read(shown, 5)
    with pytest.raises(ConfigError, match=r"6.png is a palette image; set data.channels=3"):
        sources.read(shown, 6)
    assert [one.record for one in shown.bad] == []
    assert shown[0].shape == (6, 6, 1) and [one.record for one in shown.bad] == [0]


def test_pictures_leave_bad_files_out(tmp_path):
    """Whatever stands in for them would carry their labels."""
    source = numbered(tmp_path, BAD)
    for given in (source, replacing.Replacing(source, 0.3)):
        places, images = replacing.readable(given, range(0, 20, 2))
        assert places.tolist() == [4, 6, 8, 10, 12, 14, 16, 18]
        assert [int(image[0, 0, 0]) for image in images] == places.tolist()
    with pytest.raises(ConfigError, match="none of the images looked at can be read"):
        replacing.readable(source, BAD)


def test_an_evaluation_stops_at_a_bad_file(tmp_path):
    """Accuracy on other images than it names would be wrong: centre views and labelled batches read sources as is."""
    source = numbered(tmp_path, [7])
    with pytest.raises(ConfigError, match=r"7.png is no image .*moco-jax inspect PATH --write=PAGE.py finds"):
        list(loader.centered(source, lambda image: image, batch_size=4))
    rows = {"rows": np.arange(20), "batch_size": 20, "positions": np.arange(20), "size": 4, "workers": 1}
    with pytest.raises(ConfigError, match="7.png is no image"):
        list(loader.labelled_batches(source, CROPS[0], seed=0, first_step=0, last_step=1, **rows))


def test_what_is_no_source_is_refused():
    """Before anything is read of it."""
    with pytest.raises(ConfigError, match="a list is no source"):
        replacing.Replacing([1, 2], 0.1)
    with pytest.raises(ConfigError, match="arrays holds no images"):
        replacing.Replacing(sources.ArraySource(np.zeros((0, 2, 2, 1), np.uint8)), 0.1)


def test_most_neighbours_of_a_damaged_folder_show_different_images(tmp_path):
    """A third of a folder in a row: no image is shown by many."""
    table = expected(range(100), 300)[:100]
    assert max(len(list(same)) for _, same in itertools.groupby(sorted(table.tolist()))) <= 5
