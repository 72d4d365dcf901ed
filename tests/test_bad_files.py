"""A run on a folder with bad files: what its log says, what is on the device, and where it stops."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from moco_jax import assembly, bad_files, cli, config, gallery, parallel, pretrain
from moco_jax.cli import flags
from moco_jax.config import ConfigError
from moco_jax.data import files, order, pixels, replacing
from moco_jax.data.sources import ArraySource
from moco_jax.logs import BAD_FILES, RunLog
from tests import tiny
from tests.test_folder_run import page

BAD = {"3.png": b"", "4.png": b"no image", "11.png": b"\x89PNG\r\n\x1a\n" + bytes(9)}


@pytest.fixture
def folder(tmp_path):
    """40 colour images; three are bad."""
    (tmp_path / "p").mkdir()
    for i in range(40):
        Image.fromarray(np.full((9, 9, 3), i, np.uint8)).save(tmp_path / f"p/{i}.png")
    for name, content in BAD.items():
        (tmp_path / "p" / name).write_bytes(content)
    return tmp_path / "p"


def made(folder, share, path="streamed", **changes):
    """Two epochs of two steps; the net is not what is looked at."""
    c = page(folder, eval=config.Eval(every_epochs=0), train=config.Train(epochs=2))
    data = dataclasses.replace(c.data, max_bad_fraction=share, path=path)
    return dataclasses.replace(c, data=data, log=config.Log(every_steps=1), **changes)


@pytest.fixture
def shown(monkeypatch):
    """The batches and resident images that the loop was handed; a fake one takes a batch a step and trains nothing."""
    heard = {}

    def loop(step_fn, state, batches, data, *, cadence, save, **_):
        heard["batches"] = [next(batches) for _ in range(cadence.total)]
        heard["images"] = parallel.host(data).get("images")
        save(cadence.total, state.replace(step=parallel.born(lambda: jnp.asarray(cadence.total, jnp.int32))), {})
        return state

    monkeypatch.setattr(pretrain, "run", loop)
    return heard


def log_of(run):
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("path", ["streamed", "resident"])
def test_a_run_goes_on_and_its_log_names_each_bad_file_once_and_all_at_the_end(folder, tmp_path, capsys, shown, path):
    """The share, the names and why; in the log and on the console; the run of another count shows the same images."""
    c = made(folder, 0.1, path)
    small = tiny.small_encoder(c, 3)
    assert pretrain.train(c, tmp_path / "run", encoder=small).checkpoint == 4
    events = [r for r in log_of(tmp_path / "run") if r.get("event") == BAD_FILES]
    assert {(e["count"] <= 3, e["images"]) for e in events} == {(True, 40)}
    assert events[0]["step"] == 0  # found when the run was put together
    new = [one for e in events for one in e.get("new", [])]
    assert sorted(one["name"] for one in new) == sorted(BAD) == sorted(one["name"] for one in events[-1]["all"])
    assert {one["record"]: one["why"] for one in new}[3] == "is empty"
    out = capsys.readouterr().out
    assert "warning: bad files: 3 of 40 images cannot be read, and others are shown in their place; all: " in out
    assert out.count("3.png (is empty)") == 2  # new, and at the end
    parts = assembly.assemble(made(folder, 0.9, path), encoder=small)
    table = np.array([int(image[0, 0, 0]) for image in parts.source])
    good = [i for i in range(40) if f"{i}.png" not in BAD]
    np.testing.assert_array_equal(table[good], good)
    assert set(table) == set(good)
    for batch in shown["batches"]:
        rows = batch["raw"][0][:, 0, 0, 0] if path == "streamed" else shown["images"][batch["ids"][:, 0], 0, 0, 0]
        np.testing.assert_array_equal(rows, table[batch["ids"][:, 0]])


def test_too_many_stop_the_run_before_anything_is_written(folder, tmp_path):
    """Three of 40 are more than 5 %: the list, and what to do, and no folder."""
    with pytest.raises(
        ConfigError, match=r"^3 of the 40 images of .*0\.05 allows: 3\.png .*, 4\.png .*, 11\.png .*; bring"
    ):
        pretrain.train(made(folder, 0.05), tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Damaged(ArraySource):
    """Images of which some are bad files."""

    def __init__(self, images, bad, **given):
        super().__init__(images, **given)
        self.bad = bad

    def __getitem__(self, index):
        if index in self.bad:
            raise pixels.Unreadable("cut", "is cut")
        return super().__getitem__(index)


def test_what_turns_up_in_training_is_said_at_the_next_line_of_the_log(folder, tmp_path, shown):
    """A record that was not among those looked at before."""
    sampled = np.unique(np.linspace(0, 99, 64).astype(int))
    bad = int(np.setdiff1d(np.arange(100), sampled)[0])
    c = made(folder, 0.1)
    images = np.random.default_rng(0).integers(0, 256, (100, 9, 9, 3), np.uint8)
    pretrain.train(c, tmp_path / "run", encoder=tiny.small_encoder(c, 3), source=Damaged(images, [bad], name="mine"))
    first, last = (r for r in log_of(tmp_path / "run") if r.get("event") == BAD_FILES)
    assert first["new"] == last["all"] == [{"record": bad, "name": f"record {bad}", "why": "is cut"}]
    assert first["step"] < last["step"] == 12


def test_a_stand_in_keeps_to_the_group_where_pairs_do(folder, tmp_path):
    """data.pairs="same_group" on folders of four: the nearest in the folder of a bad file; else any image."""
    for i in range(40):
        (folder / f"{i // 4}").mkdir(exist_ok=True)
        (folder / f"{i}.png").rename(folder / f"{i // 4}/{i}.png")
    for pairs, stands_in in (
        ("same_group", 2),
        ("same_image", next(i for i in order.stand_ins(3, 40) if i not in (3, 4, 11))),
    ):
        c = made(folder, 0.1)
        c = dataclasses.replace(c, data=dataclasses.replace(c.data, pairs=pairs))
        assert assembly.assemble(c, encoder=tiny.small_encoder(c, 3)).source[3][0, 0, 0] == stands_in


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_a_share_is_a_share(folder, share):
    """Anything else is refused."""
    with pytest.raises(ConfigError, match=r"data.max_bad_fraction must lie in 0\.\.1"):
        assembly.assemble(made(folder, share))


def test_files_that_go_in_a_run_stop_it_and_its_log_has_the_list(folder, tmp_path, monkeypatch):
    """After a checkpoint the folder stays; the same command goes on when the files are back."""
    c = made(folder, 0.1, train=config.Train(epochs=20))
    c = dataclasses.replace(c, data=dataclasses.replace(c.data, workers=1))  # several may find one more each
    small, kept, heard = tiny.small_encoder(c, 3), {f: f.read_bytes() for f in folder.iterdir()}, []

    def loop(step_fn, state, batches, data, *, first_step, save, **_):
        heard.append(first_step)
        next(batches)
        save(first_step + 1, state.replace(step=parallel.born(lambda: jnp.asarray(first_step + 1, jnp.int32))), {})
        for file in kept if first_step == 0 else ():
            file.unlink()
        list(batches)
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "run", loop)
    with pytest.raises(ConfigError, match=r"^5 of the 40 images of .*\.png \(is not there\)"):
        pretrain.train(c, tmp_path / "run", encoder=small)
    last = log_of(tmp_path / "run")[-1]
    assert (last["event"], last["count"], len(last["all"])) == (BAD_FILES, 5, 5)
    for file, content in kept.items():
        file.write_bytes(content)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(c, tmp_path / "run", encoder=small)
    assert heard == [0, 1] and log_of(tmp_path / "run")[-1]["count"] == 3


def test_a_run_that_stops_before_its_first_checkpoint_leaves_the_list(folder, tmp_path, monkeypatch):
    """Its folder would go otherwise; the same run begins in it with a larger share, which may change."""
    small, kept = tiny.small_encoder(made(folder, 0.1), 3), {f: f.read_bytes() for f in folder.iterdir()}

    def loop(step_fn, state, batches, data, **_):
        for file in kept:
            file.unlink(missing_ok=True)
        for _ in batches:
            pass
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "run", loop)
    for share, ends in ((0.1, ConfigError), (1.0, ConfigError)):  # none can be read, at last
        for file, content in kept.items():
            file.write_bytes(content)
        c = made(folder, share, train=config.Train(epochs=20))
        with pytest.raises(ends):
            pretrain.train(c, tmp_path / "run", encoder=small)
        last = log_of(tmp_path / "run")[-1]
        assert last["event"] == BAD_FILES and last["count"] >= 5


def test_the_program_ends_with_status_1_and_one_line(folder, tmp_path, capsys, monkeypatch):
    """0 allows no bad file at all."""
    monkeypatch.setattr(flags, "_left", lambda status: status)
    argv = [
        "train", "--config=photos", f"--config.data.folder={folder}", f"--workdir={tmp_path}/run",
        "--config.data.max_bad_fraction=0",
    ]  # fmt: skip
    assert cli.main(argv) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("error: 1 of the 40 images of") and "3.png (is empty)" in said[0]


def test_other_processes_tell_their_stderr(tmp_path, monkeypatch, capsys):
    """Their log is silent, and each reads images that the first process does not see."""

    source = replacing.Replacing(Damaged(np.zeros((9, 2, 2, 1), np.uint8), (1, 5)), 0.5)
    monkeypatch.setattr(parallel, "is_first_process", lambda: False)
    with RunLog(tmp_path, total_steps=9, first_step=0, batch_size=1, silent=True) as log:  # noqa: SIM117
        with bad_files.Told(log, source, step=0, every=3) as told:
            heard = []
            for i, _ in enumerate(told.batches(x for x in map(source.__getitem__, range(9)))):
                heard.append((i, capsys.readouterr().err))
    named = [(i, text) for i, text in heard if text]
    assert [i for i, _ in named] == [2, 5]  # with the batches of steps 3 and 6, of what was found by then
    assert "record 1 (is cut)" in named[0][1] and "record 1" not in named[1][1] and "record 5" in named[1][1]
    assert capsys.readouterr().err.endswith("all: record 1 (is cut), record 5 (is cut)\n")
    assert not list(tmp_path.iterdir())


def test_the_last_step_is_one_of_them(tmp_path):
    """Of a loop that takes a batch a step and no more: what its last batch met is new, and all of it, at that step."""
    source = replacing.Replacing(Damaged(np.zeros((4, 2, 2, 1), np.uint8), (3,)), 0.5)
    with RunLog(tmp_path, total_steps=4, first_step=0, batch_size=1) as log:  # noqa: SIM117
        with bad_files.Told(log, source, step=0, every=2) as told:
            batches = told.batches(x for x in map(source.__getitem__, range(4)))
            for _ in range(4):
                next(batches)
    new, last = (r for r in log_of(tmp_path) if r.get("event") == BAD_FILES)
    assert new["step"] == last["step"] == 4 and new["new"] == last["all"] and new["new"][0]["record"] == 3


def classes(root, damaged):
    """Class folders train and val; the damaged files, or in their place copies of what stands in for them."""
    for split, count in (("train", 20), ("val", 4)):
        for i in range(count):
            file = root / split / "ab"[i % 2] / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.random.default_rng([i, count]).integers(0, 256, (9, 9, 3), np.uint8)).save(file)
    names = files.list_folder(root / "train").paths
    for record in (0, 7, 8):
        stand_in = next(i for i in order.stand_ins(record, 20) if i not in (0, 7, 8))
        (root / "train" / names[record]).write_bytes(
            b"" if damaged else (root / "train" / names[stand_in]).read_bytes()
        )
    if damaged:
        (root / "val/b/1.png").write_bytes(b"")
    return root


@pytest.mark.slow
def test_a_run_with_bad_files_is_the_run_in_which_they_are_copies_of_their_stand_ins(tmp_path, capsys):
    """Bit for bit; its kNN goes without them, and its pictures are made."""
    digests = []
    for name, damaged in (("bad", True), ("copies", False)):
        c = page(classes(tmp_path / name, damaged), train=config.Train(epochs=3))
        c = dataclasses.replace(
            c, data=dataclasses.replace(c.data, max_bad_fraction=0.3), log=config.Log(every_steps=1)
        )
        small = tiny.small_encoder(c, 3)
        pretrain.train(c, tmp_path / f"{name}_run", encoder=small, recipe=tiny.LIGHT)
        digests.append(json.loads((tmp_path / f"{name}_run/checkpoints/3/digests/metadata").read_text())["leaves"])
    assert digests[0] == digests[1] and digests[0]
    assert "kNN goes without 3 of the 20 images" in capsys.readouterr().out
    knn = [r for r in log_of(tmp_path / "bad_run") if "knn_top1" in r]
    assert len(knn) == 3 and all("without 1 of the 4 images" in r["warning"] for r in knn)
    parts = assembly.assemble(dataclasses.replace(c, data=dataclasses.replace(c.data, folder=str(tmp_path / "bad"))))
    made, missing = gallery.gather({"view_pairs": lambda: gallery.views(parts, 0, gallery.Options(), "")})
    assert made and not missing
