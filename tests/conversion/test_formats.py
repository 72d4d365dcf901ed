"""What convert writes for others: the writer of the format is called, its reading compared, its refusals kept."""

import json
import pickle
import sys
import types

import numpy as np
import pytest

from moco_jax import initial, pretrain
from moco_jax.checkpoints import (
    agreement,
    huggingface_folders,
    libraries,
    origin,
    pytorch,
    reading,
    timm_folders,
    weights,
)
from moco_jax.checkpoints.store import Store, write_json
from moco_jax.checkpoints.training import Ours
from moco_jax.config import ConfigError
from moco_jax.conversion import convert, probe, resuming, source
from moco_jax.evaluation.encoder import digest
from moco_jax.state import Network
from tests.checkpoints import portables
from tests.conversion import runs

IMAGENET = {"stem": "imagenet"}
CIFAR = "ResNets begin with .* has the stem 'cifar' .*: --format=pth and --format=pth.tar hold it$"


@pytest.fixture
def run(tmp_path):
    runs.write(tmp_path / "run", model=IMAGENET)
    return tmp_path / "run"


def quiet(*args, **options):
    said = []
    convert.convert(*args, say=said.append, **options)
    return said


def linear(folder, run, **changes):
    """The folder of an eval-linear of two rates on a run's online encoder, of which the second was chosen."""
    with Store(run / "checkpoints", read_only=True) as store:
        network = Network(**store.tree(8)["online"])
    about = {"settings": {"feature": "backbone", "learning_rates": [30.0, 3.0]}, "encoder": digest(network)} | changes
    rng = np.random.default_rng(5)
    params = {"kernel": rng.standard_normal((2, 16, 3)).astype("f4"), "bias": rng.standard_normal((2, 3)).astype("f4")}
    folder.mkdir()
    row = {"learning_rate": 3.0}
    write_json(folder / "result.json", {"about": about, "classes": ["a", "b", "c"], "rows": {"trained encoder": row}})
    with Store(folder / "trained" / "checkpoints") as store:
        store.save(6, {"online": {"params": params}}, {"format": 1})
    return params


def test_a_folder_of_transformers_holds_encoder_classifier_and_card(run, tmp_path, monkeypatch):
    """The backbone's tensors, the chosen rate's classifier with its classes, the pixels, the licence."""
    pytest.importorskip("safetensors")
    params, compared = linear(tmp_path / "linear", run), []
    monkeypatch.setattr(agreement, "of", lambda *args: compared.append(args[-1]) or "agreed")
    monkeypatch.setattr(libraries, "opened", lambda folder: lambda x: x)
    said = quiet(run, tmp_path / "hf", "huggingface", classifier=tmp_path / "linear", licence="apache-2.0")
    found, before = reading.read(tmp_path / "hf"), source.open_source(run, sha256=None)
    assert found.online.backbone.keys() == before.online.backbone.keys()
    for name, value in before.online.backbone.items():
        np.testing.assert_array_equal(found.online.backbone[name], value)
    assert found.classifier.names == ("a", "b", "c")
    np.testing.assert_array_equal(found.classifier.weight, params["kernel"][1].T)
    np.testing.assert_array_equal(found.classifier.bias, params["bias"][1])
    assert found.pixels == before.pixels and found.pixels.resize == 20
    card = (tmp_path / "hf/README.md").read_text()
    assert 'license: "apache-2.0"' in card and "run of moco, step 8 of 20" in card and '"batch_size": 16' in card
    assert compared == ["transformers"] and "agreed" in said


def test_without_the_library_torch_reads_what_was_written(run, tmp_path, monkeypatch):
    """And it is said that the library was not asked."""
    pytest.importorskip("safetensors")
    pytest.importorskip("torch")
    monkeypatch.setattr(libraries, "opened", lambda folder: "transformers does not import (why)")
    said = quiet(run, tmp_path / "hf", "huggingface")
    assert any("JAX against PyTorch" in line for line in said)
    assert "transformers does not import (why), so transformers was not asked; PyTorch read what was written" in said


def test_detectron2_gets_its_pickle_and_the_lines_of_its_config(tmp_path, monkeypatch):
    """Nothing is compared, which is said."""
    runs.write(tmp_path / "run", model={"arch": "resnet18", "width": 64, **IMAGENET})
    said = "\n".join(quiet(tmp_path / "run", tmp_path / "a.pkl", "detectron2"))
    content = pickle.loads((tmp_path / "a.pkl").read_bytes())  # written by this test
    assert content["matching_heuristics"] is True and "res2.0.conv1.norm.weight" in content["model"]
    assert "features not compared: Detectron2 is not run here" in said and 'FORMAT: "RGB"' in said
    assert 'its config needs:\nMODEL:\n  WEIGHTS: "a.pkl"\n  PIXEL_MEAN: ' in said


def test_a_classifier_that_a_format_cannot_hold_is_said_to_stay(tmp_path):
    """A .pkl has no place for that of a supervised file; the table names it."""
    torch = pytest.importorskip("torch")
    runs.write(tmp_path / "run", model={"arch": "resnet18", "width": 64, **IMAGENET})
    quiet(tmp_path / "run", tmp_path / "a.pth", "pth")
    content = torch.load(tmp_path / "a.pth", weights_only=True)
    torch.save(content | {"fc.weight": torch.ones(3, 512), "fc.bias": torch.zeros(3)}, tmp_path / "b.pth")
    said = quiet(tmp_path / "b.pth", tmp_path / "b.pkl", "detectron2")
    assert "left out: the classifier of 3 classes, which has no place there" in said


@pytest.mark.parametrize(
    ("form", "model", "message"),
    [
        ("timm", IMAGENET, "timm has no resnet_tiny, .*; Hugging Face's format holds it$"),
        ("timm", {"arch": "resnet18", **IMAGENET}, "64 channels .* encoder 4 .*; Hugging Face's format holds"),
        ("timm", {}, f"^timm's {CIFAR}"),
        ("huggingface", {}, f"^transformers' {CIFAR}"),
        ("detectron2", IMAGENET, "Detectron2 has no resnet_tiny"),
        ("detectron2", {}, f"^Detectron2's {CIFAR}"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, form, model, message):
    """In one line, with nothing left behind."""
    runs.write(tmp_path / "run", model=model)
    with pytest.raises(ConfigError, match=message):
        quiet(tmp_path / "run", tmp_path / "a", form)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("which", "changes", "message"),
    [
        ("target", {}, "was trained on another encoder than run's target one"),
        ("online", {"settings": {"feature": "head", "learning_rates": [30.0, 3.0]}}, "is on head features"),
        ("online", {"encoder": "0" * 64}, "was trained on another encoder"),
    ],
)
def test_a_classifier_travels_with_its_own_encoder_alone(run, tmp_path, which, changes, message):
    """Told by the digest that eval-linear kept."""
    linear(tmp_path / "linear", run, **changes)
    with pytest.raises(ConfigError, match=message):
        probe.read(tmp_path / "linear", source.open_source(run, sha256=None), which)


@pytest.mark.parametrize(
    "without",
    [
        ("about",),
        ("about", "settings"),
        ("about", "encoder"),
        ("about", "settings", "learning_rates"),
        ("classes",),
        ("rows", "trained encoder"),
        ("rows", "trained encoder", "learning_rate"),
    ],
)
def test_a_result_that_lacks_a_key_is_refused(run, tmp_path, without):
    """In one line that names the file, as for one that is not there."""
    linear(tmp_path / "linear", run)
    result = json.loads((tmp_path / "linear/result.json").read_text())
    inner = result
    for key in without[:-1]:
        inner = inner[key]
    del inner[without[-1]]
    write_json(tmp_path / "linear/result.json", result)
    with pytest.raises(ConfigError, match=f"linear/result.json is not as `moco-jax eval-linear` .*'{without[-1]}'"):
        probe.read(tmp_path / "linear", source.open_source(run, sha256=None), "online")


@pytest.mark.parametrize(("resize", "said"), [(19, True), (20, False), (23, True)])
def test_a_processor_that_cuts_every_image_elsewhere_is_said(tmp_path, monkeypatch, resize, said):
    """Of a Hugging Face folder that has one."""
    pytest.importorskip("safetensors")
    monkeypatch.setattr(agreement, "of", lambda *args: "agreed")
    monkeypatch.setattr(libraries, "opened", lambda folder: lambda x: x)
    runs.write(tmp_path / "run", model=IMAGENET, resize=resize)
    assert (convert.OFF in quiet(tmp_path / "run", tmp_path / "hf", "huggingface")) == said
    runs.write(tmp_path / "gray", channels=2, model=IMAGENET, resize=resize)
    assert convert.OFF not in quiet(tmp_path / "gray", tmp_path / "none", "huggingface")


def test_a_folder_is_written_where_nothing_can_compare_it(run, tmp_path, monkeypatch):
    """Neither its library nor torch is there: it says so, and writes what it can."""
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(libraries, "opened", lambda folder: "transformers is not installed")
    said = []
    convert.convert(run, tmp_path / "hf", "huggingface", say=said.append)
    assert "features not compared: transformers is not installed, and PyTorch is not installed" in said
    assert (tmp_path / "hf/model.safetensors").exists()


def test_weights_keep_where_they_come_from(run, tmp_path):
    """Over any number of hops: into a run that goes on from a file, into one that starts from it, and out again."""
    what = source.open_source(run, sha256=None)
    published = reading.Found("the released code's", what.online, None, None, None, None, "moco_v1_x", None, (), "ab12")
    first = origin.of_file(published)
    assert first.text == "moco_v1_x as published by the authors of MoCo (the released code's), SHA-256 ab12"
    for key, about in (("started", {"init": {"origin": first._asdict()}}), ("continued", {"origin": first._asdict()})):
        goods = source.portable(
            what._replace(run=what.run._replace(about=what.run.about | about)), "online", None, None
        )
        assert goods.origin == f"run of moco, step 8 of 20, {key} from {first.text}"
        assert goods.license == "other" and goods.license_note == origin.MIT_OR_NC
        ours = Ours(8, np.zeros(0, np.int32), what.run.about | about)
        again = origin.of_file(published._replace(published=None, ours=ours, sha256="cd"))
        assert again.text == f"{goods.origin}, laid out as the released code's, SHA-256 cd"
        assert again.license_note == origin.MIT_OR_NC
    assert source.portable(what._replace(run=None, found=published), "online", None, "mit").license == "mit"
    for odd in ({"origin": 3}, {"origin": {"text": 1}}, {"init": {"origin": {"text": "a"}}}, {"init": None}):
        assert origin.of_run(what.run.about | odd, 8) == ("run of moco, step 8 of 20", "")


def test_what_is_nearer_wins_and_nothing_is_lost(run):
    """A note on a licence stays where a later hop has none; a classifier that is given goes before the file's."""
    about = source.open_source(run, sha256=None).run.about
    noted, plain = ({"text": text, "license_note": note} for text, note in (("a", "mind it"), ("b", "")))
    for init, continued in ((noted, plain), (plain, noted)):
        found = origin.of_run(about | {"init": {"origin": init}, "origin": continued}, 8)
        assert found.license_note == "mind it"
        assert (
            found.text == f"run of moco, step 8 of 20, started from {init['text']}, continued from {continued['text']}"
        )
    what = source.open_source(run, sha256=None)
    file, given = (weights.Classifier(np.full((2, 16), v), np.zeros(2), None) for v in (1.0, 2.0))
    for both, wanted in (((file, given), given), ((file, None), file), ((None, given), given), ((None, None), None)):
        assert source.portable(what._replace(classifier=both[0]), "online", both[1], None).classifier is wanted
    bare = reading.Found("a ResNet", what.online._replace(head={}), None, None, None, None, None, None, (), "ab")
    file = what._replace(run=None, found=bare)
    assert source.portable(file._replace(online=bare.online), "online", None, None).which is None
    assert source.portable(file, "online", None, None).which == "online"  # with MoCo's projection head


def test_a_run_that_goes_on_from_a_file_keeps_its_origin(tmp_path, monkeypatch):
    """In the description of its checkpoint, where the next conversion finds it."""
    torch = pytest.importorskip("torch")
    about, _ = runs.write(tmp_path / "run")
    monkeypatch.setattr(agreement, "of", lambda *args: "agreed")
    quiet(tmp_path / "run", tmp_path / "a.pth.tar", "pth.tar")
    content = torch.load(tmp_path / "a.pth.tar", weights_only=True)
    torch.save({k: v for k, v in content.items() if k != "moco_jax"}, tmp_path / "b.pth.tar")
    parts = types.SimpleNamespace(config=runs.config(), steps_per_epoch=4)
    monkeypatch.setattr(resuming, "assemble", lambda config: parts)
    monkeypatch.setattr(pretrain, "default_evaluators", lambda _: [])
    monkeypatch.setattr(pretrain, "about_of", lambda _: dict(about))
    flags = ["--config=mine", "--config.data.folder=my photos"]
    said = quiet(tmp_path / "b.pth.tar", tmp_path / "on", "orbax", config=runs.config(), flags=flags)
    train = f"moco-jax train --config=mine '--config.data.folder=my photos' --workdir={tmp_path}/on"
    assert said[-1] == f"written: {tmp_path}/on; training goes on by {train}"
    assert "epoch 2 is step 8 of 20" in said and sum("moco-jax train" in line for line in said) == 1
    said = quiet(tmp_path / "a.pth.tar", tmp_path / "back", "orbax")
    assert said[-1].endswith(f"by the page and flags of the run: moco-jax train --workdir={tmp_path}/back")
    assert sum("moco-jax train" in line for line in said) == 1
    sha256 = pytorch.digests(tmp_path / "b.pth.tar")[1]
    file = f"MoCo checkpoint, the CIFAR-10 notebook's, after epoch 2, SHA-256 {sha256}"
    on = source.open_source(tmp_path / "on", sha256=None)
    assert on.layout == f"run of moco, step 8 of 20, continued from {file}"


def test_origin_and_licence_outlive_a_hop_over_folders(tmp_path, monkeypatch):
    """A published file into a folder of one library, from there into one of the other, and into a run."""
    pytest.importorskip("safetensors")
    monkeypatch.setattr(agreement, "of", lambda *args: "agreed")
    monkeypatch.setattr(libraries, "opened", lambda folder: lambda x: x)
    runs.write(tmp_path / "run", model={"arch": "resnet18", "width": 64, **IMAGENET})
    what = source.open_source(tmp_path / "run", sha256=None)
    found = reading.Found("the released code's", what.online, None, None, None, None, "moco_v1_x", None, (), "ab12")
    first = origin.of_file(found)
    for one, other in ((timm_folders.write_timm, "huggingface"), (huggingface_folders.write_huggingface, "timm")):
        (tmp_path / f"to {other}").mkdir()
        one(source.portable(what._replace(run=None, found=found), "online", None, "mit"), tmp_path / f"to {other}")
        quiet(tmp_path / f"to {other}", tmp_path / other, other)
        card = (tmp_path / other / "README.md").read_text()
        assert f", made from {first.text}\n" in card and 'license: "other"' in card
        assert f"## Licence\n\nmit, as given at conversion. {origin.MIT_OR_NC}" in card
        begun = initial.read(str(tmp_path / other)).about["origin"]
        assert begun["text"].endswith(first.text) and begun["license_note"].endswith(origin.MIT_OR_NC)


def test_class_names_and_pixels_that_pth_cannot_hold_are_said(tmp_path, monkeypatch):
    """A folder of a library has both; a file in torchvision's names neither."""
    pytest.importorskip("safetensors")
    pytest.importorskip("torch")
    monkeypatch.setattr(agreement, "of", lambda *args: "agreed")
    huggingface_folders.write_huggingface(portables.portable(classes=("cat", "dog")), tmp_path)
    said = quiet(tmp_path, tmp_path / "a.pth", "pth")
    lost = ["left out: the names of its 2 classes, which have no place there"]
    lost.append("left out: how images are prepared, which has no place there")
    assert [line for line in said if "no place" in line] == lost
    assert not any("no place" in line for line in quiet(tmp_path / "a.pth", tmp_path / "b.pth", "pth"))


def test_the_card_of_published_weights_tells_of_both_licences(run):
    """MIT and CC-BY-NC: what their repository says, and nothing that we know better."""
    what = source.open_source(run, sha256=None)
    assert source.portable(what, "online", None, None)[8:10] == (None, "")
    assert source.portable(what, "online", None, "mit")[8:10] == ("mit", "")
    found = reading.Found("the released code's", what.online, None, None, None, None, "moco_v1_x", None, (), "ab12")
    goods = source.portable(what._replace(run=None, found=found), "online", None, None)
    assert goods.license == "other" and "MIT" in goods.license_note and "CC-BY-NC 4.0" in goods.license_note
    assert goods.origin.startswith("moco_v1_x as published by the authors of MoCo") and "SHA-256 ab12" in goods.origin


def test_a_file_without_a_card_leaves_origin_and_licence_to_the_terminal(run, tmp_path, monkeypatch):
    """Where the weights come from, and the sentence about their licence: nothing in a .pth or .pkl keeps them."""
    pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    monkeypatch.setattr(agreement, "of", lambda *args: "agreed")
    left = "left out: where the weights come from (run of moco, step 8 of 20"
    assert f"{left})." in quiet(run, tmp_path / "a.pth", "pth")
    assert not any(line.startswith(left) for line in quiet(run, tmp_path / "hf", "huggingface"))
    about = {"origin": {"text": "moco_v1_x", "license_note": origin.MIT_OR_NC}}
    runs.write(tmp_path / "run18", model={"arch": "resnet18", "width": 64, **IMAGENET}, about=about)
    for form in ("pth", "detectron2"):
        said = quiet(tmp_path / "run18", tmp_path / f"b.{form}", form)
        assert f"{left}, continued from moco_v1_x). {origin.MIT_OR_NC}" in said


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "size"), [("resnet18", 32), ("resnet50", 224)])
@pytest.mark.parametrize(("form", "library"), [("timm", "timm"), ("huggingface", "transformers")])
def test_the_library_itself_agrees(tmp_path, form, library, arch, size):
    """ResNet-18, and ResNet-50 at 224 pixels: timm and transformers open what was written, to 1e-5 of our features."""
    from tests.parity.torchvision_cpu import import_torchvision

    import_torchvision()
    pytest.importorskip(library)
    runs.write(tmp_path / "run", size=size, model={"arch": arch, "width": 64, **IMAGENET})
    said = quiet(tmp_path / "run", tmp_path / "out", form)
    assert any(f"of {size} pixels, JAX against {library}" in line for line in said)
