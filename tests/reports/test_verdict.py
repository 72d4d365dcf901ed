"""Verdicts on the logs of real runs, made to fail in each way and healthy, and on logs that lack something."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks import verdicts
from moco_jax import config
from moco_jax.data import order
from moco_jax.evaluation import consistency
from moco_jax.reports import curves, runs, verdict
from tests.reports import written

LOGS = Path(__file__).parent / "logs"
KEYS = {  # the config key that the advice must name
    "no-momentum": "moco.momentum",
    "rate-30": "optimizer.learning_rate",
    "no-shuffle": "shuffle.block",
    "queue-4096": "queue.size",
    "queue-1024-of-128-images": "queue.size",
    "40-images": "data.split",
    "rate-1e-4": "optimizer.learning_rate",
}


def stored(name, workdir, *, lines=None, without=(), **sections):
    """A recorded run as a folder: its first `lines` lines, without some numbers, sections of the config changed."""
    about, *log = [json.loads(line) for line in (LOGS / f"{name}.jsonl").read_text().splitlines()]
    for section, changes in sections.items():
        about["config"][section] |= changes
    workdir.mkdir(exist_ok=True)
    (workdir / "config.json").write_text(json.dumps(about))
    log = [{k: v for k, v in r.items() if k not in without} for r in log[:lines]]
    (workdir / "log.jsonl").write_text("".join(json.dumps(r) + "\n" for r in log))
    return runs.read(workdir)


def test_there_is_a_log_of_every_case():
    """The benchmark's cases and the tests' data are the same."""
    assert sorted(p.stem for p in LOGS.glob("*.jsonl")) == sorted(verdicts.CASES)
    assert {kind for kind, _ in verdicts.CASES.values()} == {
        verdict.LEARNING, verdict.COLLAPSED, verdict.LEAKING, verdict.LARGE_QUEUE, verdict.STARVED
    }  # fmt: skip


@pytest.mark.parametrize("name", verdicts.CASES)
def test_a_real_log_gets_the_verdict_it_was_made_for(name, tmp_path):
    """Five ways to end, each with the numbers of the cause and the key to change; healthy runs with no advice."""
    found = verdict.of(stored(name, tmp_path / "run"))
    assert found.kind == verdicts.CASES[name][0], found.text
    assert any(c.isdigit() for c in found.cause) and KEYS.get(name, "") in found.advice
    assert bool(found.advice) == (name in KEYS)
    assert "\n" not in found.text and len(found.text) < 500


@pytest.mark.parametrize("name", verdicts.CASES)
def test_a_log_without_newer_numbers_is_still_judged(name, tmp_path):
    """Own keys and key consistency came later: K is then judged by its length and the number of images."""
    newer = ["own_keys", *(f"key_{what}_{p}" for what in ("cosine", "age") for p in (0, 25, 50, 75, 100))]
    assert verdict.of(stored(name, tmp_path / "run", without=newer)).kind == verdicts.CASES[name][0]


def test_a_log_with_loss_alone_is_not_called_names(tmp_path):
    """What is not logged is not claimed, neither as a failure nor as checked: it says that no leak was looked for."""
    kept = {"event", "step", "loss", "images"}
    every = {k for line in (LOGS / "no-shuffle.jsonl").read_text().splitlines()[1:] for k in json.loads(line)}
    found = verdict.of(stored("no-shuffle", tmp_path / "run", without=every - kept))
    assert found.kind == verdict.LEARNING and "no leak was looked for" in found.cause


def test_no_leak_is_missed_where_none_can_be(tmp_path):
    """A memory bank's keys come from other batches, and nothing of it is shuffled."""
    run = stored("small", tmp_path / "run", without={"leak"})
    assert "no leak was looked for" in verdict.of(run).cause
    bank = dataclasses.replace(run.config, mechanism="memory_bank", moco=None, queue=None, shuffle=None)
    found = verdict.of(run._replace(config=bank))
    assert found.kind == verdict.LEARNING and "leak" not in found.cause


@pytest.mark.parametrize("name", [n for n, (kind, _) in verdicts.CASES.items() if kind == verdict.LEARNING])
def test_a_healthy_run_is_never_called_failed_on_its_way(name, tmp_path):
    """After every line of its log: too early, also while the loss is still at chance early on, or learning."""
    total = len((LOGS / f"{name}.jsonl").read_text().splitlines()) - 1
    kinds = [verdict.of(stored(name, tmp_path / "run", lines=n)).kind for n in range(1, total + 1)]
    assert kinds[0] == verdict.EARLY and kinds[-1] == verdict.LEARNING
    assert set(kinds) <= {verdict.EARLY, verdict.LEARNING}, kinds


def test_a_run_is_not_judged_before_a_tenth_of_it(tmp_path):
    """The first loss is near 0 and rank high, whatever comes; a tenth is where it begins."""
    early = verdict.of(stored("no-momentum", tmp_path / "run", lines=2))
    assert early.kind == verdict.EARLY and "of 180 steps are logged, judged is from 18 on" in early.cause
    run = altered(tmp_path, uniformity=0.0)
    kinds = [verdict.of(run._replace(step=step)).kind for step in (17, 18)]
    assert kinds == [verdict.EARLY, verdict.COLLAPSED]


def test_a_loss_at_chance_is_no_verdict_before_half_of_the_run(tmp_path):
    """Of 180 steps: at 89 it is too early, at 90 it is not."""
    run = altered(tmp_path, loss=6.2)
    kinds = [verdict.of(run._replace(step=step)).kind for step in (89, 90)]
    assert kinds == [verdict.EARLY, verdict.STARVED]


@pytest.mark.parametrize(("scaling", "rate"), [(False, "0.06"), (True, "0.06 (0.03 by optimizer.linear_scaling)")])
def test_a_run_that_stayed_at_chance_may_want_a_higher_rate(tmp_path, scaling, rate):
    """Both keys of the table in docs/verdict.md; more epochs only of a run that had all of its own."""
    run = altered(tmp_path, loss=6.2)
    scaled = dataclasses.replace(run.config.optimizer, linear_scaling=scaling)
    run = run._replace(config=dataclasses.replace(run.config, optimizer=scaled))
    higher = f"optimizer.learning_rate above {rate}, or more images"
    assert verdict.of(run).advice == f"begin anew with train.epochs above 20 or {higher}"
    assert verdict.of(run._replace(step=100)).advice == f"wait, or begin anew with {higher}"


def test_a_run_that_diverged_has_collapsed(tmp_path):
    """The log's last loss is null: a step, and the key, whatever the numbers before it said."""
    run = stored("small", tmp_path / "run", lines=6)
    written.cut(tmp_path / "run", json.dumps({"step": run.step + 9, "loss": None}) + "\n")
    found = verdict.of(runs.read(tmp_path / "run"))
    assert found.kind == verdict.COLLAPSED and f"no number at step {run.step + 9}" in found.cause
    assert "optimizer.learning_rate below 0.06" in found.advice


def altered(tmp_path, name="small", **numbers):
    """A healthy run, with other numbers in every line."""
    run = stored(name, tmp_path / "run")
    series = {k: dict.fromkeys(run.series["loss"], v) for k, v in numbers.items()}
    return run._replace(series=run.series | series)


@pytest.mark.parametrize(
    ("numbers", "kind", "words"),
    [
        ({"own_keys": 0.49}, verdict.LEARNING, ""),
        ({"own_keys": 0.5}, verdict.LARGE_QUEUE, "0.5 old keys of a query's own image"),
        ({"queue_filled": 0.4}, verdict.LARGE_QUEUE, "filled 40% of queue.size 512"),
        ({"key_cosine_100": 0.49}, verdict.LARGE_QUEUE, "cosine 0.49"),
        ({"key_cosine_100": 0.51}, verdict.LEARNING, ""),
        ({"uniformity": -0.04}, verdict.COLLAPSED, "uniformity -0.04 (limit -0.05)"),
        ({"uniformity": -0.06}, verdict.LEARNING, ""),
        ({"effective_rank": 1.4}, verdict.COLLAPSED, "effective rank 1.4 (limit 1.5)"),
        ({"leak": 0.11, "pretext_own": 0.5, "pretext_reshuffled": 0.39}, verdict.LEAKING, "from 50.0% to 39.0%"),
        ({"leak": 0.09}, verdict.LEARNING, ""),
        ({"loss": 0.96 * math.log(513)}, verdict.STARVED, "which is chance (6.24)"),
        ({"loss": 0.94 * math.log(513)}, verdict.LEARNING, ""),
        # Each may hide the next: they are looked for in this order.
        ({"uniformity": 0.0, "leak": 0.3, "own_keys": 9.0}, verdict.COLLAPSED, ""),
        ({"leak": 0.3, "own_keys": 9.0, "loss": 6.2}, verdict.LEAKING, ""),
        ({"own_keys": 9.0, "loss": 6.2}, verdict.LARGE_QUEUE, ""),
    ],
)
def test_the_limits_are_where_they_are_said_to_be(tmp_path, numbers, kind, words):
    """Just within and just beyond each of them, on a run that is healthy otherwise."""
    found = verdict.of(altered(tmp_path, **numbers))
    assert found.kind == kind and words in found.cause, found.text


def test_masked_own_keys_are_no_trouble(tmp_path):
    """queue.mask_same_image leaves them out of the negatives; the log counts them either way."""
    run = altered(tmp_path, own_keys=9.0)
    masked = dataclasses.replace(run.config, queue=dataclasses.replace(run.config.queue, mask_same_image=True))
    assert verdict.of(run._replace(config=masked)).kind == verdict.LEARNING


def test_few_images_are_starving_whatever_the_rest_says(tmp_path):
    """99 and 100 of them."""
    run = altered(tmp_path, own_keys=0.0)
    found = verdict.of(run._replace(images=99))
    assert found.kind == verdict.STARVED and "99 images (limit 100) are seen 233 times each" in found.cause
    assert verdict.of(run._replace(images=100)).kind == verdict.LEARNING
    assert found.advice.endswith("), or start from a trained encoder (train.init_from)")
    begun = dataclasses.replace(run.config, train=dataclasses.replace(run.config.train, init_from="a.pth"))
    again = verdict.of(run._replace(images=99, config=begun))
    assert again.advice.startswith("give more images (data.") and again.advice.endswith(")")
    assert "start from" not in again.advice  # as it did


def test_the_end_is_the_mean_of_the_last_tenth(tmp_path):
    """Of 30 steps the lines after 27, one at least; what was not finite is left out."""
    workdir = written.folder(tmp_path / "run", written.of(3))
    written.stretch(workdir, 0, 30, loss=float)  # lines at 24 and 28
    written.cut(workdir, '{"step": 30, "loss": 29.5}\n')
    run = runs.read(workdir)
    assert verdict.late(run, "loss") == (26.5 + 29.5) / 2 and verdict.late(run, "nothing") is None
    short = run._replace(series={"x": {10: 1.0, 20: 5.0}, "y": {20: math.nan}})
    assert verdict.late(short, "x") == 5.0 and verdict.late(short, "y") is None


@pytest.mark.parametrize(
    ("images", "size", "symmetric"), [(48, 16, False), (48, 48, False), (48, 160, False), (48, 48, True)]
)
def test_own_keys_are_expected_as_the_order_of_images_has_them(tmp_path, images, size, symmetric):
    """Counted over 40 epochs of the real order, batch 2: within 0.06 of the formula (batches are coarse)."""
    ids = [order.ids(0, step, np.arange(2), records=images, batch_size=2)[:, 0] for step in range(40 * images // 2)]
    held, views = size // 2, 2 if symmetric else 1
    counts = []
    for step in range(len(ids) // 2, len(ids)):
        queue = np.concatenate(ids[step - held // views : step])  # with two keys an image, half as many steps fit
        counts.append(views * (queue[None] == ids[step][:, None]).sum(1).mean())
    run = stored("small", tmp_path / "run", without=["own_keys"])
    c = dataclasses.replace(run.config, queue=config.Queue(size), moco=config.Moco(symmetric=symmetric))
    assert verdict.own_keys(run._replace(config=c, images=images)) == pytest.approx(np.mean(counts), abs=0.06)


def test_a_leak_that_is_gone_is_no_leak(tmp_path):
    """The last look counts: an early alarm that did not last is no verdict, a late one is."""
    run = stored("default", tmp_path / "run")
    first, last = min(run.series["loss"]), max(run.series["loss"])
    assert verdict.of(run._replace(series=run.series | {"leak": {first: 0.9, last: 0.0}})).kind == verdict.LEARNING
    assert verdict.of(run._replace(series=run.series | {"leak": {first: 0.0, last: 0.9}})).kind == verdict.LEAKING


def test_the_shares_of_age_are_those_that_are_logged():
    """The curve of key consistency looks for the very names that the evaluator writes."""
    assert curves.SHARES == consistency.PERCENT


@pytest.mark.parametrize("mechanism", ["moco", "memory_bank"])
@pytest.mark.parametrize(
    ("numbers", "kind"), [({"loss": 30.0}, verdict.STARVED), ({"loss": 30.0, "effective_rank": 1.1}, verdict.COLLAPSED)]
)
def test_nce_by_the_constant_of_untrained_features_is_told_what_to_change(tmp_path, mechanism, numbers, kind):
    """A loss above chance, whether keys lie on a line or not; a constant of enough batches is not to blame."""
    run = altered(tmp_path, **numbers)
    for batches in (1, verdict.NCE_BATCHES):
        section = dataclasses.replace(config.section_of(mechanism)(), loss="nce", nce_batches=batches)
        changed = dataclasses.replace(run.config, **{mechanism: section})
        found = verdict.of(run._replace(config=changed))
        assert found.kind == kind and found.text.count(f"{mechanism}.nce_batches is 1") == (batches == 1)
    healthy = verdict.of(altered(tmp_path)._replace(config=changed))
    assert healthy.kind == verdict.LEARNING and not healthy.advice
