"""The comparison of mechanisms: which runs there are, what one says of itself, how it goes on, what is drawn of it."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import hard_negatives, mechanisms, mechanisms_figures
from moco_jax import checks, config, pages

ALL = {run.name: run for runs in mechanisms.parts().values() for run in runs}


def test_every_run_is_a_config_that_fits_and_sees_as_many_images():
    """2,048 images on one device, 24 times each: every batch divides them."""
    for run in ALL.values():
        page = mechanisms.page_of(run, None)
        c = checks.resolve(config.read(page), 2048)
        checks.check(c, records=2048, devices=1)
        assert c.mechanism == run.mechanism and c.seed == run.seed and c.train.epochs == 24
        assert c.data.split == "train[:2048]" and 2048 % c.batch_size == 0
        for key, value in run.changes.items():
            assert config.flat(c)[key] == value


def test_every_mechanism_is_tuned_alike_and_judged_by_other_seeds():
    """The same grid for each, on seed 0; three seeds a point; one dictionary size in common."""
    parts = mechanisms.parts()
    grids = {
        name: [
            (r.changes["optimizer.learning_rate"], r.changes[f"{name}.temperature"])
            for r in parts["tuning"]
            if r.mechanism == name
        ]
        for name in mechanisms.PAGES
    }
    assert len({tuple(grid) for grid in grids.values()}) == 1 and grids["moco"] == mechanisms.GRID
    assert {r.seed for r in parts["tuning"]} == {0}
    for name, runs in parts.items():
        if "tuning" not in name:
            settings = {r.name.rsplit(",seed=", 1)[0] for r in runs}
            assert len(runs) == 3 * len(settings) and {r.seed for r in runs} == {1, 2, 3}
    assert {r.changes["moco.momentum"] for r in parts["momentum"]} == {0.0, 0.9, 0.99, 0.999, 0.9999}
    for run in parts["nce"]:
        tried = [r for r in parts["nce_tuning"] if r.mechanism == run.mechanism]
        assert {r.seed for r in tried} == {0} and run.changes in [r.changes for r in tried]
        assert [r.changes["optimizer.learning_rate"] for r in tried] == [rate for rate, _ in mechanisms.NCE_GRID]
    assert {r.changes["shuffle.block"] for r in parts["shuffle"]} == {0}
    assert {r.changes["moco.temperature"] for r in parts["temperature"]} == {0.05, 0.1, 0.2, 0.5, 1.0}


def test_the_weight_of_the_hardest_negatives_by_hand():
    """Two queries, 200 negatives, so that the hardest 1 % are two; a small temperature puts all weight on them."""
    cosines = np.zeros((2, 200))
    cosines[0, [7, 9]], cosines[1, [0, 3]] = (0.5, 0.4), (0.2, 0.1)
    alike = np.zeros((2, 200), bool)
    alike[0, 7] = True
    share, same = hard_negatives.of(cosines, alike, 0.1)
    e = np.exp
    first, second = e(5) + e(4), e(2) + e(1)
    assert share == pytest.approx((first / (first + 198) + second / (second + 198)) / 2)
    assert same == pytest.approx(e(5) / first / 2)
    assert hard_negatives.of(cosines, alike, 0.005)[0] == pytest.approx(1)
    assert hard_negatives.of(cosines, alike, 100.0)[0] == pytest.approx(0.01, rel=0.01)


def test_old_keys_of_a_querys_own_image_are_no_negatives():
    """Left out of the weights, and never of its class; nor is a row of the start, whose record nobody knows."""
    labels = np.array([0, 1, 0])
    ids, records = np.array([[0, 0], [2, 2]]), np.array([0, 1, 2, -1])
    cosines, alike = hard_negatives.compared(np.full((2, 4), 0.5), ids, records, labels)
    out = -np.inf
    np.testing.assert_array_equal(cosines, [[out, 0.5, 0.5, 0.5], [0.5, 0.5, out, 0.5]])
    np.testing.assert_array_equal(alike, [[False, False, True, False], [True, False, False, False]])


def test_only_runs_without_a_line_are_run_and_a_failure_is_said(tmp_path, monkeypatch, capsys):
    """One is done, one fails, the rest get a line each; the second call runs what failed alone."""
    runs = mechanisms.parts()["shuffle"]
    out = tmp_path / "out.jsonl"
    stored = [{"run": run.name, "config": mechanisms.digest(run)} for run in runs[:2]]
    stored[1]["config"] = "of another page"
    out.write_text("".join(json.dumps(line) + "\n" for line in stored))
    asked = []

    def spawned(run, named):
        asked.append(run.name)
        fails = run.name == runs[2].name and len(asked) < 3
        return "" if fails else json.dumps({**line(run), "knn_top1": 0.5, "seconds": 1.0})

    def line(run):
        return {"run": run.name, "config": mechanisms.digest(run)}

    monkeypatch.setattr(mechanisms, "spawned", spawned)
    argv = ["--part=shuffle", f"--output={out}"]
    assert mechanisms.main(argv) == 1
    assert sorted(asked) == [runs[1].name, runs[2].name]
    assert mechanisms.main(argv) == 0 and asked[2:] == [runs[2].name]
    assert mechanisms.main(argv) == 0 and len(asked) == 3
    assert "3 runs, 2 left" in capsys.readouterr().out
    assert mechanisms.main(["--part=momentum", "--list", f"--output={out}"]) == 0 and len(asked) == 3
    assert "15 runs, 15 left" in capsys.readouterr().out
    assert mechanisms.main(["--part=shufle"]) == 1
    assert "part 'shufle' is unknown; did you mean 'shuffle'?" in capsys.readouterr().err


def test_the_digest_of_a_run_is_what_its_numbers_follow_from(monkeypatch):
    """Another length is another run, other workers are not."""
    run = mechanisms.parts()["shuffle"][0]
    before = mechanisms.digest(run)
    assert len({mechanisms.digest(r) for r in ALL.values()}) == len(ALL)
    monkeypatch.setitem(mechanisms.COMMON, "data.workers", 3)
    assert mechanisms.digest(run) == before
    monkeypatch.setitem(mechanisms.COMMON, "train.epochs", 23)
    assert mechanisms.digest(run) != before


@pytest.mark.long
def test_a_run_says_what_came_of_it(tmp_path, monkeypatch):
    """Shrunken, on digits: kNN, loss, consistency by age, the gradient on hard negatives; again it is read back."""
    small = {"batch_size": 64, "bn.group_size": 8, "model.width": 4, "model.dim": 8, "train.epochs": 2}
    small |= {
        "eval.every_epochs": 1,
        "leak.every_epochs": 0,
        "consistency.every_epochs": 1,
        "data.split": "train[:200]",
    }
    monkeypatch.setattr(mechanisms, "COMMON", small | {"eval.bank_split": "train[:200]", "eval.k": 5})
    monkeypatch.setattr(mechanisms, "PAGES", {"moco": "digits"})
    run = mechanisms.Run("moco", {"queue.size": 128, "moco.temperature": 0.2}, 1)
    monkeypatch.setattr(mechanisms, "parts", lambda: {"temperature": [run]})
    line = json.loads(json.dumps(mechanisms.line_of(run, tmp_path / run.name, str(tmp_path / "tfds"))))
    assert run.name == line["run"] == "moco,queue.size=128,moco.temperature=0.2,seed=1"
    assert 0 < line["knn_top1"] <= 1 and line["chance"] == pytest.approx(np.log(129)) and line["images_seen"] == 384
    end, half_way = line["key_cosine_by_age"], line["key_cosine_half_way"]
    assert [age for age, _ in end] == [age for age, _ in half_way] == [1, 2] and end != half_way
    found = line["hard_negatives"]
    assert found["trained"] == 0.2 and found["negatives"] == 128 and 0 < found["alike"] < 0.3
    shares = [found[str(t)][0] for t in mechanisms.TEMPERATURES]
    assert shares == sorted(shares, reverse=True) and shares[-1] < shares[0] <= 1
    again = mechanisms.line_of(run, tmp_path / run.name, str(tmp_path / "tfds"))
    assert again["knn_top1"] == line["knn_top1"]
    np.testing.assert_allclose(again["hard_negatives"]["0.1"], found["0.1"], rtol=1e-5)


def test_what_was_found_is_summed_up_and_drawn(tmp_path, capsys, monkeypatch):
    """Mean and deviation over seeds, by setting; three pictures, also of a part of the runs."""
    lines = []
    for i, run in enumerate(run for run in ALL.values() if run.seed):
        hard = {str(t): [0.5 / (1 + t), 0.2] for t in mechanisms.TEMPERATURES} | {"alike": 0.1}
        lines.append(
            {
                "run": run.name,
                "config": mechanisms.digest(run),
                "mechanism": run.mechanism,
                "seed": run.seed,
                "changes": run.changes,
                "loss": 1.0,
            }
            | {"knn_top1": 0.3 + 0.01 * run.seed + 0.001 * i, "chance": 5.0, "verdict": "learning"}
            | {"key_cosine_half_way": [[1, 0.9], [5, 0.8]], "hard_negatives": hard}
        )
    stored = tmp_path / "in.jsonl"
    old = lines[0] | {"knn_top1": 0.1, "config": "of another page"}
    stored.write_text("".join(json.dumps(line) + "\n" for line in [*lines, lines[0] | {"knn_top1": 0.9}, old]))
    monkeypatch.setattr(sys, "argv", ["figures", f"--input={stored}", f"--pictures={tmp_path}"])
    assert mechanisms_figures.main() == 0
    name = mechanisms_figures.setting(lines[0])
    found = mechanisms_figures.summary(mechanisms_figures.read(stored))[name]
    same = [90.0, *(100 * line["knn_top1"] for line in lines[1:] if mechanisms_figures.setting(line) == name)]
    assert found["mean"] == pytest.approx(np.mean(same)) and found["std"] == pytest.approx(np.std(same, ddof=1))
    assert name in capsys.readouterr().out
    for part in ("size", "momentum", "temperature"):
        assert (tmp_path / f"mechanisms_{part}.png").stat().st_size > 10_000
    assert mechanisms_figures.along(lines, "momentum", "moco", "moco.momentum").keys() == set(mechanisms.MOMENTA)


@pytest.mark.parametrize("mechanism", ["end_to_end", "memory_bank"])
def test_a_page_is_the_run_whose_numbers_it_names(mechanism):
    """A dictionary of 256: all but seed, cadences, and how its rate is written."""
    (run, *_) = (
        r for r in mechanisms.parts()["sizes"] if r.mechanism == mechanism and mechanisms.MIDDLE in r.changes.values()
    )
    ours, theirs = (
        config.flat(config.read(page))
        for page in (pages.load(mechanisms.PAGES[mechanism]), mechanisms.page_of(run, None))
    )
    free = {"seed", "eval.every_epochs", "consistency.every_epochs", "leak.every_epochs", "checkpoint.every_epochs"}
    free |= {"checkpoint.keep", "optimizer.learning_rate", "optimizer.linear_scaling"}
    assert {k for k in ours.keys() | theirs.keys() if ours.get(k) != theirs.get(k)} <= free
    scale = theirs["batch_size"] / 256
    assert (
        ours["optimizer.learning_rate"] == theirs["optimizer.learning_rate"] * scale
        and theirs["optimizer.linear_scaling"]
    )


def test_the_page_says_what_the_lines_say():
    """Every run is there, of the configs as they are now; every row of the page's tables is made of them."""
    root = Path(__file__).parents[1]
    lines = mechanisms_figures.read(root / "benchmarks/results/mechanisms.jsonl")
    done = {line["run"]: line["config"] for line in lines}
    assert {name: mechanisms.digest(run) for name, run in ALL.items()}.items() <= done.items()
    page = (root / "docs/mechanisms.md").read_text().splitlines()
    assert not set(mechanisms_figures.tables(lines)) - set(page)
    text = "\n".join(page)
    assert f"{len(lines)} lines" in text
    for part in ("size", "momentum", "temperature"):
        assert f"(mechanisms_{part}.png)" in text and (root / f"docs/mechanisms_{part}.png").is_file()
