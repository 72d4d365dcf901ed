"""TFDS data sets: sub-splits, labels, decoding and conversion like Pillow, and every refusal with its numbers."""

import dataclasses
import io
import json
import pathlib
import struct
import time
import zlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from moco_jax import config
from moco_jax.config import ConfigError
from moco_jax.data import loader, measured, pixels, replacing, sources
from moco_jax.data import tfds as reader

CIFAR = pathlib.Path(__file__).parents[3] / "shared" / "data" / "tfds"
RNG = np.random.default_rng(0)
GRAY = RNG.integers(0, 256, (5, 7), dtype=np.uint8)
RGB = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
PICTURES = {"image": tfds.features.Image()}


def data(**changes):
    return dataclasses.replace(config.Data(), **changes)


def deep_colour_png():
    """A 2x1 PNG of 16 bits per colour, which Pillow cannot write."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" + RNG.bytes(12))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def test_sub_splits_partition_a_split(digits_dir):
    """train[:1200] and train[1200:] are the first 1200 and the last 300 rows of train, images and labels."""
    whole, head, tail = (
        reader.open_source("digits", s, data_dir=digits_dir) for s in ("train", "train[:1200]", "train[1200:]")
    )
    assert (len(head), len(tail)) == (1200, 300)
    np.testing.assert_array_equal(whole.labels(), np.concatenate([head.labels(), tail.labels()]))
    np.testing.assert_array_equal(tail.labels_of([7, 299, 0]), tail.labels()[[7, 299, 0]])
    for i, part, j in ((0, head, 0), (1199, head, 1199), (1200, tail, 0), (1499, tail, 299)):
        np.testing.assert_array_equal(whole[i], part[j])


@pytest.mark.parametrize(
    "split", ["train[10%:]+test[:5]", "all", "train[-3:]", "test[2:5]+train[:3]", "train[7:]+train[:9]"]
)
def test_places_are_those_among_all_records(digits_dir, split):
    """A record's place is where it stands among all splits in a row, whatever the text that it was opened by."""
    every = reader.open_source("digits", "train+test", data_dir=digits_dir)
    source = reader.open_source("digits", split, data_dir=f"{digits_dir}/../{pathlib.Path(digits_dir).name}")
    whole, places = source.origin()
    assert whole == sources.origin_of(every).whole and len(places) == len(source)
    assert sources.origin_of(every).places == list(range(1797))
    np.testing.assert_array_equal(source.labels(), every.labels()[places])
    for i in (0, 2, len(source) - 1):
        np.testing.assert_array_equal(source[i], every[places[i]])


def test_iteration_ends(digits_dir):
    """A number out of range is an IndexError, Python's sign of the end, negative ones included."""
    source = reader.open_source("digits", "test[:3]", data_dir=digits_dir)
    assert len(list(source)) == 3
    with pytest.raises(IndexError):
        source[-1]


@pytest.mark.parametrize("split", ["nope", "train[20:20]", "train[5:2]", "train[", ""])
def test_unknown_split_lists_the_splits(digits_dir, split):
    """A split that is not there, is empty or cannot be parsed names those that are, with their sizes, on one line."""
    with pytest.raises(ConfigError, match=r"split .* of 'digits'.*train \(1500 images\), test \(297 images\)$"):
        reader.open_source("digits", split, data_dir=digits_dir)


def test_unknown_dataset_names_the_nearest(digits_dir, tmp_path, prepare):
    """The nearest of what lies in the folder and "digits" is named, with the folder and the line that prepares."""
    with pytest.raises(
        ConfigError, match=rf"'digit' is unknown; did you mean 'digits'.*{digits_dir}.*moco-jax prepare dataset NAME"
    ):
        reader.open_source("digit", "train", data_dir=digits_dir)
    folder = prepare("mine", {"x": tfds.features.Text()}, [{"x": "a"}])
    with pytest.raises(ConfigError, match=r"'mime' is unknown; did you mean 'mine'\? \(one of: digits, mine\)"):
        reader.open_source("mime", "train", data_dir=folder)
    for name in ("not a name!", "", "digits/x"):
        with pytest.raises(ConfigError, match="is unknown"):
            reader.open_source(name, "train", data_dir=str(tmp_path / "absent"))


def test_known_but_unprepared_dataset_says_how(tmp_path):
    """A data set of TFDS's own that is not prepared is never downloaded: the message has the line that prepares it."""
    line = rf"moco-jax prepare dataset cifar10 --data_dir={tmp_path}$"
    with pytest.raises(ConfigError, match=rf"'cifar10' is not prepared in {tmp_path}; .*{line}"):
        reader.open_source("cifar10", "train", data_dir=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_another_file_format_is_refused(prepare, encoded):
    """A data set in a format other than array_record is named as such, with the way out."""
    folder = prepare("other", PICTURES, [{"image": encoded(RGB)}], file_format="parquet")
    with pytest.raises(ConfigError, match=r"prepared in .* as parquet, and array_record is needed"):
        reader.open_source("other", "train", data_dir=folder)
    info = pathlib.Path(folder, "other", "1.0.0", "dataset_info.json")
    held = json.loads(info.read_text())
    for written in ({**held, "fileFormat": "tfrecord"}, {k: v for k, v in held.items() if k != "fileFormat"}):
        info.write_text(json.dumps(written))
        how = f"convert it once: moco-jax prepare convert {info.parent} --data_dir=FOLDER"
        with pytest.raises(ConfigError, match=rf"'other' is prepared in .* as tfrecord, and array_record .*; {how}$"):
            reader.open_source("other", "train", data_dir=folder)


def test_dataset_without_images_is_refused(prepare):
    """Without a feature "image" of three dimensions there is nothing to train on; the features are named."""
    folder = prepare("words", {"text": tfds.features.Text()}, [{"text": "a"}])
    with pytest.raises(ConfigError, match=r"'words' has no feature 'image' .* only text"):
        reader.open_source("words", "train", data_dir=folder)
    flat = {"image": tfds.features.Tensor(shape=(4, 4), dtype=np.float32)}
    folder = prepare("flat", flat, [{"image": np.zeros((4, 4), np.float32)}])
    with pytest.raises(ConfigError, match="'flat' has no feature 'image' of shape"):
        reader.open_source("flat", "train", data_dir=folder)


PEOPLE = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=2)}
NESTED = {
    "frames": {"rgb": tfds.features.Image(), "depth": tfds.features.Tensor(shape=(2, 3, 1), dtype=np.float32)},
    "objects": tfds.features.Sequence(PEOPLE),
    "attributes": {"smiling": tfds.features.ClassLabel(names=["no", "yes"]), "age": np.float32},
    "id": tfds.features.Text(),
}


@pytest.fixture
def nested(prepare, encoded):
    """A data set whose images and labels lie deeper; the depth of row i is i throughout."""
    rows = [
        {
            "frames": {"rgb": encoded(RGB + i), "depth": np.full((2, 3, 1), i, np.float32)},
            "objects": {"image": [encoded(GRAY)] * 2, "label": [0, 1]},
            "attributes": {"smiling": i % 2, "age": 1.5},
            "id": str(i),
        }
        for i in range(3)
    ]
    return prepare("nested", NESTED, rows)


def test_nested_and_other_features(nested):
    """Images and labels by TFDS's nested names: pictures, tensors, names of classes."""
    source = reader.open_source("nested", "train", data_dir=nested, image="frames/rgb", label="attributes/smiling")
    np.testing.assert_array_equal(np.stack(list(source)), [RGB, RGB + 1, RGB + 2])
    assert source.labels().tolist() == [0, 1, 0]
    assert (source.classes, source.class_names) == (2, ["no", "yes"])
    gray = reader.open_source("nested", "train", data_dir=nested, image="frames/rgb", channels=1)
    assert gray[1].shape == (5, 7, 1) and gray.labels() is None and gray.classes is None
    depth = reader.open_source("nested", "train[1:]", data_dir=nested, image="frames/depth")
    assert [image[0, 0, 0] for image in depth] == [1, 2] and depth[0].dtype == np.float32


def test_features_that_are_not_there_list_those_that_are(nested):
    """On one line, with their shapes; one of which a record holds several is called so."""
    parts = ["frames/rgb (?, ?, 3)", "frames/depth (2, 3, 1)", "objects (several in a record)", "attributes/age"]
    for name in ("image", "frames", "frames/x", "frames/rgb/x", "objects/image", "objects", "id", ""):
        with pytest.raises(ConfigError, match=rf"'nested' has no feature '{name}' of shape \(H, W, C\)") as said:
            reader.open_source("nested", "train", data_dir=nested, image=name)
        assert all(part in str(said.value) for part in parts) and "\n" not in str(said.value)
    for name in ("x", "attributes", "attributes/age", "objects/label", "frames/rgb", "id"):
        with pytest.raises(ConfigError, match=rf"no feature '{name}' of one whole number, only .*data\.label_feature$"):
            reader.open_source("nested", "train", data_dir=nested, image="frames/rgb", label=name)


def test_a_feature_that_needs_tensorflow_is_one_line(monkeypatch, tmp_path):
    """TFDS opens a data set with videos only where TensorFlow is installed."""

    def fails(*_, **__):
        raise ModuleNotFoundError("No module named 'tensorflow'")

    monkeypatch.setattr(reader.read_only_builder, "builder_from_files", fails)
    with pytest.raises(ConfigError, match=r"'clips' has a feature .* .No module named 'tensorflow'.; pip install"):
        reader.open_source("clips", "train", data_dir=str(tmp_path))


def test_as_many_files_may_be_open_as_a_data_set_has(prepare, monkeypatch, encoded):
    """The soft limit is raised for a data set of many files, where the hard one allows it; else one line says how."""
    folder = prepare("gray", PICTURES, [{"image": encoded(GRAY)}])
    asked = []
    monkeypatch.setattr(reader.resource, "setrlimit", lambda kind, limits: asked.append((kind, limits)))
    for limits, raised in (
        ((1024, 4096), []),  # enough for one file
        ((259, 4096), [(4096, 4096)]),
        ((259, 1 << 20), [(reader.FILES, 1 << 20)]),
        ((259, reader.resource.RLIM_INFINITY), [(reader.FILES, reader.resource.RLIM_INFINITY)]),
        ((259, 259), []),
        ((1 << 20, 1 << 20), []),
        ((reader.resource.RLIM_INFINITY, reader.resource.RLIM_INFINITY), []),
    ):
        asked.clear()
        monkeypatch.setattr(reader.resource, "getrlimit", lambda kind, limits=limits: limits)
        reader.open_source("gray", "train", data_dir=folder)
        assert asked == [(reader.resource.RLIMIT_NOFILE, x) for x in raised]
    monkeypatch.setattr(reader.resource, "getrlimit", lambda kind: (200, 200))
    with pytest.raises(
        ConfigError, match=r"'gray' has 1 files and this process may open 200; raise that limit, .*ulimit -n 260"
    ):
        reader.open_source("gray", "train", data_dir=folder)


def test_images_as_stored(prepare, encoded):
    """Without data.channels: gray, RGB, RGBA, 16-bit gray, tensors of bands come out bit for bit; a bit as 0 or 255."""
    deep = RNG.integers(0, 65536, (5, 7), dtype=np.uint16)
    rgba = RNG.integers(0, 256, (5, 7, 4), dtype=np.uint8)
    for name, image in (("gray", GRAY), ("rgb", RGB), ("rgba", rgba), ("deep", deep)):
        folder = prepare(name, PICTURES, [{"image": encoded(image)}])
        found = reader.open_source(name, "train", data_dir=folder)[0]
        assert found.dtype == image.dtype
        np.testing.assert_array_equal(found, image.reshape(5, 7, -1))
    folder = prepare("bit", PICTURES, [{"image": encoded(Image.fromarray(GRAY > 99))}])
    bits = reader.open_source("bit", "train", data_dir=folder)[0]
    assert bits.dtype == np.uint8
    np.testing.assert_array_equal(bits[..., 0], (GRAY > 99) * np.uint8(255))
    bands = RNG.standard_normal((2, 4, 6, 13)).astype(np.float32)
    kind = {"image": tfds.features.Tensor(shape=(4, 6, 13), dtype=np.float32)}
    source = reader.open_source("bands", "train", data_dir=prepare("bands", kind, [{"image": b} for b in bands]))
    np.testing.assert_array_equal(np.stack(list(source)), bands)
    assert source.labels() is None and source.classes is None


def test_float_pictures_of_tfds():
    """TFDS keeps a float32 picture as RGBA bytes; the bytes come back as the floats they were."""
    floats = RNG.standard_normal((5, 7)).astype(np.float32)
    png = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(floats).view(np.uint8).reshape(5, 7, 4)).save(png, "png")
    feature = {"image": tfds.features.Image(shape=(5, 7, 1), dtype=np.float32)}
    stored = tfds.features.FeaturesDict({"image": tfds.features.Text()}).serialize_example({"image": png.getvalue()})
    source = reader.TfdsSource("floats", None, [stored], tfds.features.FeaturesDict(feature), None)
    np.testing.assert_array_equal(source[0][..., 0], floats)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_convert_as_pillow_does(prepare, encoded, channels):
    """data.channels turns gray, RGB, palette, CMYK, alpha and one-bit images into Pillow's own L and RGB."""
    picture = Image.fromarray(RGB)
    kinds = {
        "l": encoded(GRAY), "rgb": encoded(RGB), "jpeg": encoded(GRAY, "jpeg"), "p": encoded(picture.quantize(8)),
        "la": encoded(picture.convert("LA")), "cmyk": encoded(picture.convert("CMYK"), "jpeg"),
        "1": encoded(picture.convert("1")),
    }  # fmt: skip
    folder = prepare("kinds", PICTURES, [{"image": png} for png in kinds.values()])
    source = reader.open_source("kinds", "train", data_dir=folder, channels=channels)
    for image, raw in zip(source, kinds.values(), strict=True):
        truth = np.asarray(Image.open(io.BytesIO(raw)).convert("L" if channels == 1 else "RGB"))
        np.testing.assert_array_equal(image, truth.reshape(5, 7, channels))


def test_mixed_channels_are_refused_with_both_counts(prepare, encoded):
    """Gray among RGB is an error wherever it is met: by number, in the facts, in the loader."""
    folder = prepare("mixed", PICTURES, [{"image": encoded(x)} for x in (RGB, RGB, GRAY)])
    source = reader.open_source("mixed", "train", data_dir=folder)
    message = "record 2 has 1 channel and record 0 3 channels; set data.channels=3"
    for meet in (lambda: source[2], lambda: measured.measure(source, data()), lambda: loader.resident(source, 1)):
        with pytest.raises(ConfigError, match=message):
            meet()
    with pytest.raises(ConfigError, match=message):
        measured.measure(sources.ArraySource([RGB, RGB, GRAY[..., None]]), data())


def test_values_are_never_lost_in_a_conversion(prepare, encoded):
    """Refused: 16 bits under data.channels (Pillow clips them white, reads colour as 8 bits), a palette's indices."""
    deep = encoded(GRAY.astype(np.uint16) * 257)
    folder = prepare("deep", PICTURES, [{"image": deep}])
    with pytest.raises(ConfigError, match=r"record 0 holds uint16 of 1 channels, and data.channels=3"):
        reader.open_source("deep", "train", data_dir=folder, channels=3)[0]
    folder = prepare("declared", {"image": tfds.features.Image(shape=(5, 7, 1), dtype=np.uint16)}, [{"image": deep}])
    with pytest.raises(ConfigError, match=r"converts 8-bit pictures and 'declared' holds .*uint16"):
        reader.open_source("declared", "train", data_dir=folder, channels=3)
    colour = deep_colour_png()
    assert Image.open(io.BytesIO(colour)).mode == "RGB"  # that is why it has to be refused
    with pytest.raises(ConfigError, match="record 4 holds uint16 of 3 channels, and data.channels=1"):
        pixels.decode(colour, "record 4", channels=1)
    with pytest.raises(ConfigError, match="record 5 is a palette image"):
        pixels.decode(encoded(Image.fromarray(RGB).quantize(8)), "record 5")
    with pytest.raises(ConfigError, match=r"data\.channels 4 is no conversion"):
        reader.open_source("deep", "train", data_dir=folder, channels=4)


def test_labels_come_without_decoding(prepare):
    """labels() gives every label of a data set whose images cannot even be decoded, across several reads."""
    features = {"image": tfds.features.Image(), "label": tfds.features.ClassLabel(num_classes=7)}
    rows = [{"image": b"no picture", "label": i % 7} for i in range(2 * reader.CHUNK + 3)]
    source = reader.open_source("junk", "train", data_dir=prepare("junk", features, rows))
    np.testing.assert_array_equal(source.labels(), np.arange(len(rows)) % 7)
    assert source.labels().dtype == np.int64 and source.classes == 7
    with pytest.raises(pixels.Unreadable, match=r"junk/train: record 0 is no image that can be read"):
        sources.read(source, 0)


class Records(list):
    """Records of an array_record file whose disk fails at one of them."""

    def __getitem__(self, index):
        record = super().__getitem__(index)
        if record is None:
            raise RuntimeError("cannot read the chunk")
        return record


def test_a_record_that_does_not_decode_is_bad_and_a_disk_that_fails_is_not(prepare, encoded):
    """Bytes that are no picture, a cut one, an empty one and no example at all; record 0 may be among them."""
    good = encoded(RGB)
    rows = [{"image": image} for image in (b"no picture", good, good[:-40], b"", good)]
    source = reader.open_source("bad", "train", data_dir=prepare("bad", PICTURES, rows))
    records = Records(source.records[i] for i in range(5))
    source = dataclasses.replace(source, records=Records([*records, b"no example", None]))
    for index, why in ((0, "is no image"), (2, "cannot be read: .*truncated"), (3, "is empty"), (5, "is no example")):
        with pytest.raises(pixels.Unreadable, match=f"bad/train: record {index} {why}"):
            sources.read(source, index)
    with pytest.raises(sources.ReadError, match=r"record 6 cannot be read: RuntimeError: cannot read the chunk"):
        sources.read(source, 6)
    shown = replacing.Replacing(dataclasses.replace(source, records=source.records[:6]), 0.7)
    np.testing.assert_array_equal(loader.resident(shown, 2)["images"], [RGB] * 6)
    assert sorted(one.record for one in shown.bad) == [0, 2, 3, 5]


@pytest.mark.skipif(not CIFAR.exists(), reason=f"CIFAR-10 is not at {CIFAR}")
def test_real_cifar10():
    """A data set prepared by TFDS's own builder: its sizes, labels within seconds, train mean .4914 .4822 .4465."""
    source = reader.open_source("cifar10", "train", data_dir=str(CIFAR))
    start = time.monotonic()
    assert np.bincount(source.labels()).tolist() == [5000] * 10
    assert time.monotonic() - start < 15  # about one second; decoding would take more than five on a fast machine
    assert measured.measure(source, data(mean=(0.5,) * 3, std=(0.5,) * 3))[:6] == (
        50000,
        3,
        np.uint8,
        (32, 32),
        0.0,
        255.0,
    )
    part = loader.resident(reader.open_source("cifar10", "train[:2000]", data_dir=str(CIFAR)), 2)["images"]
    np.testing.assert_allclose(part.mean((0, 1, 2)) / 255, [0.4914, 0.4822, 0.4465], atol=0.01)
