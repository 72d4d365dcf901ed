"""What folders of both libraries have in common: whose one is, its JSON, names of classes, pixels, and the card."""

import json
import math
import re

import numpy as np
import pytest

from moco_jax.checkpoints import folders
from moco_jax.checkpoints.card import card
from moco_jax.checkpoints.weights import Classifier
from moco_jax.config import ConfigError
from tests.checkpoints.portables import pixels, portable


@pytest.mark.parametrize(
    ("config", "library"),
    [
        ({"model_type": "resnet"}, "huggingface"),
        ({"architecture": "resnet50", "pretrained_cfg": {}}, "timm"),
        ({"architecture": "resnet50", "model_type": "timm_wrapper"}, "timm"),
        ({"architecture": "vit_tiny"}, "timm"),
    ],
)
def test_a_folder_is_known_by_its_config(tmp_path, config, library):
    """Its name says nothing."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert folders.library(tmp_path) == library


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "config.json cannot be read"),
        ("{", "config.json is no JSON"),
        ("", "config.json is no JSON"),
        ("\udcff", "config.json is no JSON"),
        ("[" * 100_000, "config.json is no JSON"),
        ("[1]", "config.json holds a JSON list"),
        ("{}", "config.json has neither a model_type nor"),
        ('{"model_type": "vit"}', "config.json has model_type 'vit', where \"resnet\" is read"),
        ('{"model_type": "vit", "architecture": "resnet50"}', "config.json has model_type 'vit'"),
    ],
)
def test_what_is_no_folder_of_a_resnet_is_said_in_one_line(tmp_path, text, message):
    """No file, no JSON, no object, no key, another network."""
    if text is not None:
        (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=rf"^[^\n]*{message}[^\n]*$"):
        folders.library(tmp_path)


def test_no_weights_is_said_in_one_line(tmp_path):
    """A pickle that lies there instead is not read."""
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"has no model.safetensors: [^\n]*$"):
        folders.read_weights(tmp_path)


def test_both_libraries_resize_to_the_size_that_is_meant():
    """They divide and cut the fraction off: for every size and resize up to twice as large."""
    for size in range(1, 520):
        for resize in range(size, 2 * size + 1):
            share = folders.crop_share(size, resize)
            assert math.floor(size / share) == int(size / share) == resize
            assert share == pytest.approx(size / resize, rel=1e-15)


def test_class_names_there_and_back():
    """As a list, or by number; names that mean nothing are none."""
    classifier = Classifier(np.zeros((2, 3)), np.zeros(2), ("a", "b"))
    assert folders.class_names(classifier) == ["a", "b"]
    nameless = folders.class_names(classifier._replace(names=None))
    assert nameless == ["LABEL_0", "LABEL_1"] and folders.named(nameless, what="it") is None
    assert folders.named(["a", "b"], what="it") == folders.named({"1": "b", "0": "a"}, what="it") == ("a", "b")
    assert folders.named(None, what="it") is None and folders.named([], what="it") is None
    for odd in ({"0": "a", "2": "b"}, {"a": "b"}, [1, 2], "ab"):
        with pytest.raises(ConfigError, match="^it: "):
            folders.named(odd, what="it")


@pytest.mark.parametrize(
    "change",
    [
        lambda said: said.pop("range"),
        lambda said: said.update(range=[1]),
        lambda said: said.update(size="big"),
        lambda said: said.update(mean=[]),
        lambda said: said.update(mean=["a"]),
        lambda said: said.update(std=0.5),
        lambda said: said.update(std=[True]),
    ],
)
def test_our_pixels_there_and_back_or_refused(change):
    """As JSON keeps them; a value that was changed into something else is refused."""
    ours = pixels(2, dtype="uint16", range=(0.0, 4095.0), filter="bicubic")
    config = json.loads(json.dumps(folders.ours(portable(pixels=ours), pixels=True)))
    assert folders.read_our_pixels(config, what="it") == ours
    assert folders.read_our_pixels({}, what="it") is None
    change(config["moco_jax"]["pixels"])
    with pytest.raises(ConfigError, match="^it: "):
        folders.read_our_pixels(config, what="it")


@pytest.mark.parametrize(
    "odd",
    [pixels(2), pixels(3)._replace(std=(0.1,))],
    ids=["mean", "std"],
)
def test_pixels_fit_the_channels(odd):
    """One mean and one deviation for each."""
    folders.check_pixels(pixels(3), 3, what="it")
    with pytest.raises(ConfigError, match=r"^it: mean .* do not fit 3 channels"):
        folders.check_pixels(odd, 3, what="it")


@pytest.mark.parametrize("odd", [{"std": (0.1, 1e-13, 0.2)}, {"std": (0.1, 0.0, 0.2)}, {"mean": (0.1, -2e6, 0.2)}])
def test_numbers_of_no_images_are_refused(odd):
    """Features would be nan, or all alike; what is small or dark is read."""
    folders.check_pixels(pixels(3, std=(1e-12, 1.0, 1.0), mean=(1e6, -1e6, 0.0)), 3, what="it")
    with pytest.raises(ConfigError, match=r"^it: mean .{1,60} and std .{1,60} are those of no images"):
        folders.check_pixels(pixels(3, **odd), 3, what="it")


@pytest.mark.parametrize(
    "changes",
    [
        {"dtype": "evil"},
        {"size": 0},
        {"size": -5},
        {"size": 80},
        {"resize": 10**9},
        {"resize": 10**400},
        {"range": (5.0, 5.0)},
        {"range": (255.0, 0.0)},
        {"range": (0.0, float("nan"))},
        {"range": (0.0, float("inf"))},
    ],
)
def test_images_that_are_none_are_refused(changes):
    """A stranger's file is not believed: dtypes that are no images', sides that no memory holds, ranges without end."""
    with pytest.raises(
        ConfigError, match=r"^it: images of .{1,150}, are none that are read here \(uint8, uint16, float32"
    ):
        folders.check_pixels(pixels(3, **changes), 3, what="it")


def test_the_libraries_can_say_8_bits_alone():
    """Both the dtype and the range: 16-bit images that happen to end at 255 are still no 8-bit images."""
    assert folders.usual(pixels())
    assert not folders.usual(pixels(dtype="uint16")) and not folders.usual(pixels(range=(0.0, 254.0)))


@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_the_card_says_what_is_known(library):
    """Header, encoder, origin, images, licence, config: each where it is known, and that it is not where it is not."""
    text = card(portable(classes=("a", "b")), library)
    header = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)[1].splitlines()
    assert f"library_name: {library}" in header and 'license: "mit"' in header
    assert "pipeline_tag: image-classification" in header and "- moco" in header and "- self-supervised" in header
    for part in (
        "The backbone of the online encoder",
        "a linear classifier of 2 classes",
        "a run of moco_jax, step 7",
        "resnet18 as torchvision builds it",
        "512 features",
        "Channels of an image: 3",
        "shorter side to 73 pixels",
        "centre 64 x 64",
        "0 to 255 to 0 to 1",
        "[0.3, 0.31, 0.32]",
        "running statistics",
        "MIT, as the file that it comes from.",
        '"seed": 3',
    ):
        assert part in text, part
    assert ('AutoModel.from_pretrained("path/to/this/folder")' in text) == (library == "timm")
    bare = portable(pixels=None, license=None, license_note="", config=None, which="target")
    text = card(bare, library, missing="And so on.")
    assert "pipeline_tag: image-feature-extraction" in text and "license:" not in text
    for part in ("the target encoder", "Nobody says how images", "And so on.", "Nobody says under which licence"):
        assert part in text, part
    assert "processor" not in text and ("processor" in card(portable(), library)) == (library == "transformers")
    unknown = card(portable(which=None), library)
    assert "nobody says how it was trained" in unknown and not re.search("moco\n|self-sup|Contrast|queries", unknown)
    assert "\n\n\n" not in text and "```json" not in text and "classifier" not in text
    assert "8-bit" in card(portable(pixels=pixels(dtype="uint16", range=(0.0, 9.0))), library)


@pytest.mark.parametrize("resize", range(64, 76))
def test_the_card_says_which_images_a_processor_cuts_elsewhere(resize):
    """Every one where the shorter side says so, else those whose longer side does; nothing where there is none."""
    encoder = portable(pixels=pixels(size=64, resize=resize))
    every, longer = (
        "folder cuts every image one pixel further",
        "folder cuts images whose longer side, resized, exceeds 64 by",
    )
    assert (every in card(encoder, "transformers")) == (resize in (67, 71, 75)) == folders.cut_elsewhere(encoder.pixels)
    assert (longer in card(encoder, "transformers")) == (resize not in (67, 71, 75))
    assert "folder cuts" not in card(encoder, "timm") + card(encoder, "transformers", missing="There is no processor.")


@pytest.mark.parametrize(
    ("mechanism", "which", "title", "said"),
    [
        ("moco", "target", "Momentum Contrast", "exponential moving average"),
        ("end_to_end", "target", "end-to-end contrast", "the keys and was trained by gradients too"),
        ("memory_bank", "online", "contrast with a memory bank", "the queries and was trained by gradients"),
    ],
)
def test_the_card_names_the_mechanism_of_its_run(mechanism, which, title, said):
    """MoCo of MoCo alone, in title, tags and what the encoder is."""
    text = card(portable(which=which)._replace(config={"mechanism": mechanism}), "timm")
    first = next(line for line in text.splitlines() if line.startswith("# "))
    assert title in first and said in text and ("- moco\n" in text) == (mechanism == "moco")
    assert ("moving average" in text) == ("MoCo" in first) == (mechanism == "moco")


def test_a_card_names_no_place_on_a_machine():
    """Paths are the last of their names: by the key where that holds one, and by their look, in lists."""
    keys = (
        "data.folder",
        "data.manifest",
        "data.array",
        "data.data_dir",
        "eval.data",
        "eval.data_dir",
        "train.init_from",
    )
    config = {
        "mechanism": "moco",
        "data": {"dataset": "a/b"},
        "eval": {},
        "train": {"epochs": 3},
        "more": ["/home/me/x", {"y": ("~/me/z",)}],
    }
    for number, key in enumerate(keys):
        section, name = key.split(".")
        config[section][name] = f"me/photos/{number}"
    text = card(portable(config=config), "timm")
    said = json.loads(re.search(r"```json\n(.*?)\n```", text, re.DOTALL)[1])
    for number, key in enumerate(keys):
        section, name = key.split(".")
        assert said[section][name] == str(number)
    assert said["data"]["dataset"] == "a/b" and said["train"]["epochs"] == 3 and said["more"] == ["x", {"y": ["z"]}]


def test_origin_and_licence_there_and_back_or_refused():
    """As JSON keeps them, on one line; what was given at conversion is kept beside what came with the weights."""
    for licence, note, said in (
        ("mit", "", "mit, as given at conversion."),
        ("other", "As it is.", "As it is."),
        (None, "", ""),
    ):
        encoder = portable(license=licence, license_note=note, origin="a\nfile")
        config = json.loads(json.dumps(folders.ours(encoder, pixels=False)))
        assert folders.read_our_origin(config, what="it") == ("a file", said)
        assert folders.read_our_pixels(config, what="it") is None
    assert (
        folders.read_our_origin({}, what="it") is None and folders.read_our_origin({"moco_jax": {}}, what="it") is None
    )
    for odd in ({"moco_jax": 3}, {"moco_jax": {"origin": 3}}, {"moco_jax": {"origin": {"text": "a"}}}):
        with pytest.raises(ConfigError, match=r"^it: moco_jax(.origin)? is not as it was written"):
            folders.read_our_origin(odd, what="it")


@pytest.mark.parametrize(
    ("licence", "note", "said"),
    [
        ("mit", "", "mit, as given at conversion."),
        ("mit", "MIT, or not.", "mit, as given at conversion. MIT, or not."),
        ("other", "MIT, or not.", "MIT, or not."),
        (None, "", "Nobody says under which licence these weights are: say one before you publish them."),
    ],
)
def test_the_card_names_the_licence(licence, note, said):
    """A sentence about it, else its name, else that there is none; the header has a line for it where there is one."""
    text = card(portable(license=licence, license_note=note, config=None), "timm")
    assert text.endswith(f"\n\n## Licence\n\n{said}\n")
    lines = text.split("---\n")[1].splitlines()
    assert [line for line in lines if line.startswith("license")] == [f'license: "{licence}"'] * (licence is not None)
    assert all(lines)
