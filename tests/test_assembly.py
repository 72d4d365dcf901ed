"""Which records are a pair: the config's two rules, a user's own, and what is refused before anything compiles."""

import contextlib
import dataclasses
import json
import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import moco_jax
from moco_jax import assembly, config, parallel, pretrain
from moco_jax.config import ConfigError
from moco_jax.data.sources import ArraySource
from tests import tiny

CLIPS = np.arange(tiny.RECORDS) // 8  # eight clips of eight frames
PAGE = Path(__file__).parents[1] / "docs" / "pretext.md"
BASE = dataclasses.replace(
    tiny.config(),
    data=config.Data(mean=(0.5,) * 3, std=(0.25,) * 3),
    views=config.Views(recipe="moco_v2", size=tiny.SIZE),
    train=config.Train(epochs=1),
    eval=config.Eval(every_epochs=0),
    leak=config.Leak(every_epochs=0),
    log=config.Log(every_steps=1),
)


def made(rule="same_group", max_gap=None, groups=CLIPS):
    """A config with a pair rule, and the arguments of a run with images in groups."""
    c = dataclasses.replace(BASE, data=dataclasses.replace(BASE.data, pairs=rule, max_gap=max_gap))
    source = ArraySource(tiny.images(), name="mine", groups=groups)
    return c, {"source": source, "encoder": tiny.small_encoder(c, 3), "recipe": tiny.LIGHT}


def parts_of(*rule, **options):
    """Parts of a run with a pair rule; no step is compiled."""
    c, objects = made(*rule, **options)
    return assembly.assemble(c, **objects)


def ids_of(parts):
    """(rows, 2) records of an epoch."""
    return np.concatenate([b["ids"] for b in assembly.batches_of(parts)(first_step=0, last_step=4)])


def test_two_frames_of_a_clip_are_a_pair():
    """data.pairs and data.max_gap reach the batches; data.pairs="same_image" takes no notice of groups."""
    ids = ids_of(parts_of(max_gap=2))
    assert (CLIPS[ids[:, 0]] == CLIPS[ids[:, 1]]).all()
    assert set(np.unique(abs(ids[:, 0] - ids[:, 1]))) == {1, 2}
    assert abs(np.diff(ids_of(parts_of()))).max() > 2
    assert not np.diff(ids_of(parts_of("same_image"))).any()


def test_a_run_on_frames_of_clips_trains_and_counts_own_keys(tmp_path):
    """Four steps: finite, own keys in the log from the second step on, key consistency after the last."""
    c, objects = made(max_gap=3)
    pretrain.train(c, tmp_path, **objects)
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    steps = [r for r in records if "loss" in r]
    assert len(steps) == 4 and np.isfinite([r["loss"] for r in steps]).all()
    assert steps[0]["own_keys"] == 0 and steps[-1]["own_keys"] > 0
    (last,) = [r for r in records if "key_cosine_100" in r]
    assert last["step"] == 4 and last["key_age_100"] == 2 and 0.5 < last["key_cosine_100"] < 1
    with pytest.raises(ConfigError, match="holds another run: data.max_gap 3 -> None"):
        pretrain.train(made()[0], tmp_path, **objects)


def test_a_run_that_diverges_names_the_key_of_its_rate(tmp_path, monkeypatch):
    """By a step whose loss is no number; evaluations have keys of their own (`tests/test_loop.py`)."""
    diverged = {"loss": jnp.full(1, jnp.nan)}
    monkeypatch.setattr(parallel, "map_step", lambda *_, **__: lambda state, batch, data: (state, diverged))
    c, objects = made("same_image")
    with pytest.raises(FloatingPointError, match="with a lower optimizer.learning_rate$"):
        pretrain.train(dataclasses.replace(c, consistency=config.Consistency(every_epochs=0)), tmp_path, **objects)


def test_a_rule_of_the_users_own_replaces_the_key():
    """It decides the pairs, and groups that are not there are not missed."""
    c, objects = made(groups=None)
    ids = ids_of(assembly.assemble(c, **objects, pairs=lambda ids, draws: np.stack([ids, ids ^ 1], axis=1)))
    np.testing.assert_array_equal(ids[:, 1], ids[:, 0] ^ 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": None}, "data.pairs='same_group' and mine has no groups: give a manifest with a column group"),
        ({"max_gap": 0}, "data.max_gap 0 with data.pairs='same_group': a gap is 1 place or more"),
        ({"rule": "same_image", "max_gap": 3}, "data.max_gap 3 with data.pairs='same_image': a gap is"),
        ({"rule": "same_grop"}, "data.pairs 'same_grop' is unknown; did you mean 'same_group'"),
    ],
)
def test_a_pair_rule_that_cannot_be_is_refused(arguments, message):
    """In one line, before anything is compiled."""
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        parts_of(**arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("theirs", "message"),
    [
        (lambda own, call: own, None),
        (lambda own, call: own - (call == 0), "processes 0 and 2 do not see the same images of mine: 64 and 63; each"),
        (lambda own, call: own + (call == 1), "processes 0 and 2 do not .*: 64, other ones; each process reads its"),
    ],
)
def test_hosts_with_other_images_are_told(monkeypatch, theirs, message):
    """What other processes give stands for them: as many images and the same names, or one line."""
    parts, calls = parts_of(), iter(range(2))
    monkeypatch.setattr(parallel, "gathered", lambda own: [own, own, theirs(own, next(calls))])
    with contextlib.nullcontext() if message is None else pytest.raises(ConfigError, match=message):
        assembly.check_hosts(parts)
    assert next(calls, None) is None  # all of them gave both


def test_groups_of_one_image_are_warned_of():
    """Where most are: such an image is paired with itself. Where most are not, there is nothing to say."""
    own = np.arange(tiny.RECORDS) + 100
    (warning,) = [w for w in parts_of(groups=np.where(CLIPS < 3, own, CLIPS)).warnings if "hold one image" in w]
    assert "24 of the 29 groups of mine hold one image" in warning
    for few in (CLIPS, np.where(own < 108, own, CLIPS)[[*range(7), 8, *range(8, 64)]]):  # none, 7 of 15
        assert not [w for w in parts_of(groups=few).warnings if "hold one image" in w]


def test_the_rule_of_the_page_pairs_images_of_one_place_within_its_days(monkeypatch):
    """docs/pretext.md, word for word but for the training: places, days, never itself where another is in reach."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]
    assert len(code.splitlines()) < 30
    asked = {}
    monkeypatch.setattr(moco_jax, "train", lambda *a, **k: asked.update(k, config=a[0]), raising=False)
    names = {}
    exec(code, names)
    parts = assembly.assemble(asked["config"], source=asked["source"], pairs=asked["pairs"])
    steps = range(3 * parts.steps_per_epoch)
    ids = np.concatenate([next(assembly.batches_of(parts)(first_step=s, last_step=s + 1))["ids"] for s in steps])
    place, day = names["place"], names["day"]
    near = (place[:, None] == place) & (abs(day[:, None] - day) <= 30)
    assert near[ids[:, 0], ids[:, 1]].all()
    alone = near.sum(1) == 1
    np.testing.assert_array_equal(ids[:, 0] == ids[:, 1], alone[ids[:, 0]])
    assert alone.any() and not alone.all()
