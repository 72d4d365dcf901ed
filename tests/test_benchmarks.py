"""Benchmarks are commands that people run: each runs, shrunken, and says what it promises."""

import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import bn_leak, output, shrunk, verdicts
from moco_jax import config, pages, parallel, pretrain


@pytest.mark.long  # the suite for a GPU takes the same figures, of one device (`test_gpu_suite.py`)
def test_step_time_measures_every_figure():
    """images/s, compile seconds, FLOPs, bytes, memory, share of augmentation: positive numbers of a tiny net."""
    from benchmarks import step_time

    page = pages.load("digits")
    page.batch_size, page.bn.group_size, page.model.width, page.queue.size = 64, 8, 4, 64
    figures = step_time.measure(config.read(page), steps=2, repeats=2)
    numbers = ("images_per_second", "step_milliseconds", "compile_seconds", "augmentation_share")
    numbers += ("flops_per_image", "bytes_per_image", "planned_bytes_per_device")
    assert all(np.isfinite(figures[n]) and figures[n] > 0 for n in numbers), figures
    assert figures["augmentation_share"] < 1 and figures["batch_size"] == 64


@pytest.mark.long
def test_a_large_queue_is_measured_whole_and_in_chunks():
    """Both ways give one loss; chunks need less, in the loss and in a step; what is not timed is compiled alone."""
    from benchmarks import large_queue

    found = large_queue.measure((256, 4096), rows=8, repeats=2, chunks=(64,), timed=(256,), dim=8)
    small, large = found["256"], found["4096"]
    assert small["all"]["loss"] == pytest.approx(small["64"]["loss"], rel=1e-5)
    for way in ("all", "64"):
        least, most = small[way]["seconds_least_and_most"]
        assert 0 < least <= small[way]["seconds"] <= most and set(large[way]) == {"planned_bytes"}
    assert large["64"]["planned_bytes"] < 8 * 4096 * 4 < large["all"]["planned_bytes"]
    step = large_queue.steps((4096,))["4096"]
    assert step["1024"] < step["all"]


@pytest.mark.long
def test_drift_begins_with_rounding(tmp_path, monkeypatch):
    """Two devices and micro-batches leave one device by rounding: not by nothing, and by little after three steps."""
    from benchmarks import drift

    monkeypatch.setattr(parallel, "device_count", lambda: 2)  # of the tests' eight, whose compile takes minutes
    page = pages.load("digits")
    page.batch_size, page.model.width, page.model.dim, page.queue.size = 16, 4, 8, 64
    page.data.data_dir = str(tmp_path)
    rows = drift.measure(config.read(page), devices=2, steps=(1, 3), dtypes=("float32",))["rows"]["float32"]
    assert len(rows.pop("loss of one device")) == 2
    assert set(rows) == {"2 devices", "micro-batches of 8"}
    for name, differences in rows.items():
        assert set(differences) == {"parameters", "queue", "loss"}
        assert 0 < differences["parameters"][0] < 1e-5 and 0 < differences["queue"][1] < 1e-3, (name, differences)


@pytest.mark.slow
def test_probe_rates_compares_a_sweep_with_one_rate():
    """Steps of both, of a tiny net: the ratio is that of its two medians."""
    from benchmarks import probe_rates

    page = pages.load("digits")
    page.model.width, page.model.dim, page.queue.size, page.batch_size, page.bn.group_size = 4, 8, 64, 64, 8
    found = probe_rates.measure(config.read(page), rates=3, classes=4, batch=16, steps=1, repeats=2)
    one, several = found["step_milliseconds"]["1"], found["step_milliseconds"]["3"]
    assert one > 0 and several > 0 and found["ratio"] == several / one


def test_what_is_found_is_said_and_kept(tmp_path, capsys):
    """The same JSON on stdout and in the file; no file where none was asked for."""
    output.keep({"a": [1]}, None)
    output.keep({"a": [1]}, str(tmp_path / "out.json"))
    said = capsys.readouterr().out
    assert said == 2 * (tmp_path / "out.json").read_text() and json.loads((tmp_path / "out.json").read_text()) == {
        "a": [1]
    }


def logged(run_config, workdir):
    """In place of a run: a log whose numbers name shuffle and seed."""
    leaks = 0.5 if run_config.shuffle.block == 0 else 0.01 * run_config.seed
    alarm = {"step": 9, "pretext_own": 0.2 + leaks, "pretext_reshuffled": 0.2, "leak": leaks}
    records = [
        {"event": "start", "step": 0, "warnings": ["of the start, not of the alarm"]},
        {"step": 1, "loss": 5.0, "pretext_accuracy": 0.125},
        {"step": 9, "loss": 4.0, "pretext_accuracy": 0.25 + leaks},
        {"step": 9, "knn_top1": 0.9 - leaks},
        alarm | ({"warning": "keys leak"} if leaks > 0.1 else {}),
    ]
    workdir.mkdir(parents=True)
    (workdir / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_bn_leak_compares_off_and_on_from_their_logs(tmp_path, monkeypatch):
    """Both settings of every seed, the curves as logged, the last values and the first warning; groups of 4."""
    seen = []
    monkeypatch.setattr(pretrain, "train", lambda c, workdir: (seen.append(c), logged(c, workdir)))
    out = tmp_path / "out.json"
    named = ["--seeds=1,2", f"--workdir={tmp_path}/runs", f"--output={out}"]
    monkeypatch.setattr(sys, "argv", ["bn_leak", *named, "--config.train.epochs=7"])
    assert bn_leak.main() == 0
    assert [(c.seed, c.shuffle.block) for c in seen] == [(1, 0), (1, 128), (2, 0), (2, 128)]
    assert {(c.bn.group_size, c.batch_size, c.train.epochs) for c in seen} == {(4, 128, 7)}
    result = json.loads(out.read_text())
    assert {"bn.group_size=4", "train.epochs=7"} <= set(result["settings"])
    assert result["runs"]["off"][0]["pretext_accuracy"] == [[1, 0.125], [9, 0.75]]
    off, on = result["last"]["off"], result["last"]["on"]
    assert off["knn_top1"] == [0.4, 0.4] and off["first_warning"] == [9, 9] and off["largest_leak"] == [0.5, 0.5]
    assert on["pretext_accuracy"] == [0.26, 0.27] and on["first_warning"] == [None, None] and on["leak"] == [0.01, 0.02]


def test_bn_leak_draws_what_was_measured(tmp_path):
    """A picture of the stored result: two panels."""
    stored = Path(__file__).parents[1] / "benchmarks" / "results" / "bn_leak.json"
    bn_leak.draw(json.loads(stored.read_text())["runs"], str(tmp_path / "picture.png"))
    assert (tmp_path / "picture.png").stat().st_size > 10_000


def test_verdicts_says_whether_each_run_became_what_it_was_meant_to(tmp_path, monkeypatch):
    """One of two runs is healthy where it was meant to collapse: status 1; settings, results and logs as they are."""
    logs, seen = Path(__file__).parent / "reports" / "logs", {}

    def train(c, workdir):
        seen[workdir.name] = c
        about, *lines = (logs / "small.jsonl").read_text().splitlines()  # healthy, whatever was asked for
        workdir.mkdir(parents=True)
        (workdir / "config.json").write_text(about)
        (workdir / "log.jsonl").write_text("\n".join([*lines, '{"event": "verdict", "step": 180}', ""]))

    monkeypatch.setattr(pretrain, "train", train)
    named = ["--seeds=3", "--cases=small,no-momentum", f"--workdir={tmp_path}/runs", f"--output={tmp_path}/out.json"]
    monkeypatch.setattr(sys, "argv", ["verdicts", *named, f"--logs={tmp_path}/logs", "--config.train.epochs=7"])
    assert verdicts.main() == 1
    assert {n: (c.seed, c.moco.momentum, c.train.epochs) for n, c in seen.items()} == {
        "small-3": (3, 0.99, 7),
        "no-momentum-3": (3, 0.0, 7),
    }
    result = json.loads((tmp_path / "out.json").read_text())
    assert [result[n]["3"]["right"] for n in ("small", "no-momentum")] == [True, False]
    assert result["small"]["3"]["knn"] == [0.8567, 0.94]
    assert (tmp_path / "logs" / "small.jsonl").read_text() == (logs / "small.jsonl").read_text()


@pytest.mark.slow
def test_bad_weights_counts_by_kind(tmp_path):
    """Whatever was tried is explained and not executed, and what flips did adds up."""
    pytest.importorskip("torch", reason="torch is not installed: it writes the files")
    from benchmarks import bad_weights

    found = bad_weights.measure(tmp_path, times=20, kinds=["code"])
    assert set(found["kinds"]) == {"code, zip", "code, legacy", "other files"} and found["unexplained"] == []
    assert found["total"]["tried"] == found["total"]["explained"] > 100 and found["total"]["executed"] == 0
    for flips in found["flips"].values():
        assert flips["tried"] == 20 == sum(flips.get(k, 0) for k in ("explained", "equal", "changed"))
        assert flips["explained with sha256"] == 20
    assert "changed" not in found["flips"]["zip"]


def test_flips_counts_damage_and_times_digests(tmp_path):
    """Nothing silent, nothing unexplained; what a step waits for is part of what a save takes."""
    from benchmarks import flips

    found = flips.measure(tmp_path, flips=5, megabytes=2)
    assert found["total"]["silent"] == found["total"]["unexplained"] == 0 < found["total"]["refused"]
    assert sum(found["damage"]["flipped"].values()) == 5
    assert found["seconds"]["digests"] > 0 and 0 < found["seconds"]["blocked"] <= found["seconds"]["saved"]


def test_shrunk_says_what_a_copy_changes():
    """Images of 60 rows made 40: fewer bytes decode faster; views differ, least at the same place, most elsewhere."""
    smooth = np.add.outer(np.arange(60), np.arange(90))[:, :, None] * [1, 1, 1]
    images = []
    for i in range(2):
        out = io.BytesIO()
        Image.fromarray((smooth + 20 * i).astype(np.uint8)).save(out, "jpeg")
        images.append(out.getvalue())
    found = shrunk.measure(images, short_side=40, quality=95, repeats=1)
    assert (found["images"], found["made_smaller"]) == (2, 2) and found["bytes"] == found["bytes_of_those_made_smaller"]
    assert found["bytes"][0] == sum(map(len, images)) and min(found["decoded_per_second"]) > 0
    assert (
        0 < found["difference"]["same_place"] < found["difference"]["drawn"] and found["difference"]["half_pixel"] > 0
    )


def test_the_input_pipeline_is_compared_with_loops_over_libraries(tmp_path):
    """JPEG, large ones, 16-bit PNG and 13 bands: every loop has a speed, every ratio is of two of them."""
    from benchmarks import converted, input_pipeline

    for i in range(3):
        picture = np.random.default_rng(i).integers(0, 256, (40, 50, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{i}.jpg")
    how = {"repeats": 1, "images": 4, "batch_size": 2, "size": 16, "canvas": 32}
    found = input_pipeline.measure(str(tmp_path), "jpeg", **how)
    assert {"pillow_v2", "decode", "decode_and_crop", "ours", "ours_for_the_device"} <= found[
        "images_per_second"
    ].keys()
    assert all(speed > 0 for speed in found["images_per_second"].values()) and found["files"] == 3
    for ratio in found["ratios"]:
        assert all(name in found["images_per_second"] for name in ratio.split(" / "))
    for kind, shape in (("png16", (40, 50, 3)), ("tiff13", (256, 256, 13))):
        if kind == "tiff13":
            pytest.importorskip("tifffile", reason="tifffile is an extra")
        (tmp_path / kind).mkdir()
        converted.write(tmp_path, tmp_path / kind, kind)
        image = input_pipeline.decode(sorted((tmp_path / kind).iterdir())[0])
        assert image.dtype == np.uint16 and image.shape == shape
        assert "pillow_v2" not in input_pipeline.measure(str(tmp_path / kind), kind, **how)["images_per_second"]


def test_what_views_cost_is_counted():
    """Crops: the two products of both views and the filters' weights; all of the rest: more than nothing."""
    from benchmarks import view_cost

    found = view_cost.measure(images=2, size=16, canvas=64, recipe="moco_v2")
    products = 2 * 2 * 3 * (16 * 64 * 64 + 16 * 16 * 64)
    assert products < found["per_image"]["crops"]["flops"] < 1.3 * products
    assert found["bytes_sent"] == {"two crops": 1536, "canvas": 12288}
    more = view_cost.measure(images=4, size=16, canvas=64, recipe="moco_v2")["per_image"]
    for part, counts in found["per_image"].items():  # for each image, however many there are
        assert counts == pytest.approx(more[part], rel=0.3)
    augmented, shares = found["per_image"]["augmentation"], found["share_of_a_step"]["augmentation"]
    assert augmented["flops"] > 0 and shares["bytes"] == pytest.approx(augmented["bytes"] / 448e6, abs=1e-4)


def test_memory_is_watched_while_batches_are_made(tmp_path):
    """Ten looks at each of two hosts, over a tree of more entries than files."""
    from benchmarks import input_memory

    Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(tmp_path / "a.jpg")
    found = input_memory.measure(tmp_path, minutes=0.005, entries=1100, batch_size=4, workers=1)
    for name in ("crops", "canvas of 512"):
        assert len(found[name]["megabytes"]) == len(found[name]["peak"]) == 10 and found[name]["images"] >= 40
        assert all(now <= most + 1 for now, most in zip(found[name]["megabytes"], found[name]["peak"], strict=True))
