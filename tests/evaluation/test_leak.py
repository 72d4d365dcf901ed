"""The leak alarm: numbers against a plain oracle on any devices, a warning where keys leak and none where they do not.

No training: images of one colour each, and two encoders made for the purpose. The leaky one sees nothing but the mean
colour of a batch-norm group; the honest one the colour of the image, which finds its key every time.
"""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import checks, config, dictionary, parallel, pretrain
from moco_jax.config import BatchNorm, Moco, Queue, Shuffle, Train
from moco_jax.core import shuffle
from moco_jax.core.optimizers import sgd
from moco_jax.core.randomness import RESHUFFLE, SHUFFLE
from moco_jax.data.sources import ArraySource
from moco_jax.evaluation import leak
from moco_jax.mechanisms import MECHANISMS
from moco_jax.models.batch_norm import group_layout, group_moments
from moco_jax.models.encoder import Encoder
from moco_jax.state import Facts
from moco_jax.views import Views
from moco_jax.views.recipes import Crop, ViewRecipe
from tests import tiny

CHANNELS = 8
COLOURS = np.random.default_rng(3).integers(0, 256, (tiny.RECORDS, CHANNELS), np.uint8)
STORED = np.broadcast_to(COLOURS[:, None, None], (tiny.RECORDS, tiny.STORED, tiny.STORED, CHANNELS)).copy()
RECIPE = (ViewRecipe(Crop((0.2, 1.0)), ()),) * 2  # any crop of one colour is that colour
STEP = 5
BASE = tiny.config(seed=1, shuffle=Shuffle(0), queue=Queue(64))  # four groups of 4 in a batch of 16


def encoder(group, *, leaky):
    """(n, H, W, C) to the mean colour (n, C) of each image's group, or to its own."""

    def init(key):
        return {"params": {"backbone": {"gain": jnp.ones(())}, "head": {}}, "batch_stats": {}}

    def project(params, batch_stats, x):
        z = x.mean((1, 2))  # (n, C)
        if leaky:
            layout = group_layout(len(z), group)
            means, _ = group_moments(z.reshape(layout.groups, layout.members, 1, -1), layout)
            z = jnp.repeat(means, layout.members, axis=0)
        return z * params["backbone"]["gain"], batch_stats

    def features(params, batch_stats, x):
        return {"backbone": x.mean((1, 2)), "head": x.mean((1, 2))}

    return Encoder(init, project, features, "leaky" if leaky else "honest")


def raw(batch, data, positions, key):
    """Both views of a row: the stored image as it is."""
    return tuple(data["images"][batch["ids"][:, view]] for view in range(2))


def augment(x, positions, key, view):
    """The normalisation that the configs here ask for."""
    return (x.astype(jnp.float32) / 255 - 0.5) / 0.25


@functools.cache  # compiled once for each claim about the same numbers
def alarm(c, *, leaky, devices):
    """The alarm's numbers for initial values after STEP steps, and their queue."""
    over = jax.devices()[:devices]
    optimizer = sgd(lambda step: 0.1, momentum=0.9, weight_decay=0.0)
    facts = Facts(tiny.RECORDS, (tiny.STORED, tiny.STORED, CHANNELS), 4)
    parts = (encoder(c.bn.group_size, leaky=leaky), Views(2, raw, augment), optimizer)
    make = functools.partial(MECHANISMS["moco"], *parts, facts=facts)

    def batches(first_step, last_step):
        return iter(tiny.batches(c, last_step - first_step, first_step))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "device_count", lambda: devices)
        patch.setattr(jax, "local_devices", lambda: over)
        patch.setattr(leak, "IMAGES", 520)  # no multiple of the batch
        state = tiny.born(make(c), over)
        state = state.replace(step=parallel.born(lambda: jnp.asarray(STEP, jnp.int32), over))
        keys, newest_first = dictionary.keys_per_step(c), jnp.arange(c.queue.size, dtype=jnp.int32)
        written = parallel.born(lambda: (STEP - 1 - newest_first // keys)[::-1], over)  # so a mask looks at all
        state = state.replace(memory=state.memory.replace(written=written))
        data = {"images": jax.device_put(STORED, parallel.replicated(over))}
        evaluate = leak.leak_alarm(c, make, batches, data, block=checks.leak_block(c, devices))
        return evaluate(state), np.asarray(state.memory.queue)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def accuracy(c, queue, *, leaky, anew):
    """Pretext accuracy over 33 batches of 16 from STEP on by numpy, and the share of keys that leave their group."""
    hits, left = [], []
    behind = tiny.batches(c, 1, STEP)[0]["queue_ids"].reshape(-1)[::-1]  # the queue stays that of STEP, oldest first
    for step in range(STEP, STEP + 33):
        colours = (COLOURS[tiny.ids(step, 16)[:, 0]] / 255 - 0.5) / 0.25
        for direction in range(2 if c.moco.symmetric else 1):
            block, purpose = (16, RESHUFFLE) if anew else (c.shuffle.block, SHUFFLE)
            draw = functools.partial(shuffle.drawn, c.seed, jnp.asarray(STEP), direction, purpose=purpose)
            order = np.asarray(draw(total=16, block=block)) if block else np.arange(16)
            groups = {"query": np.arange(16).reshape(4, 4), "key": order.reshape(4, 4)}
            z = {name: colours.copy() for name in groups}
            for name, members in groups.items():
                for rows in members if leaky else ():
                    z[name][rows] = colours[rows].mean(0)
            q, k = unit(z["query"]), unit(z["key"])
            own = (tiny.ids(step, 16)[:, :1] == behind[None]) & c.queue.mask_same_image
            hits += list((q * k).sum(1) >= np.where(own, -np.inf, q @ queue.T).max(1) - 1e-6)
            left += list(order // 4 != np.arange(16) // 4)
    return np.mean(hits), np.mean(left)


CASES = {
    "off, groups over two devices each": (BASE, 8),
    "off, one device in micro-batches": (dataclasses.replace(BASE, train=Train(epochs=5, microbatch_size=4)), 1),
    "off, symmetric": (dataclasses.replace(BASE, moco=Moco(0.9, 0.2, symmetric=True)), 8),
    "blocks of two groups, own keys left out": (
        dataclasses.replace(BASE, shuffle=Shuffle(8), queue=Queue(64, mask_same_image=True)),
        1,
    ),
    "on": (dataclasses.replace(BASE, shuffle=Shuffle(16)), 8),
}


@pytest.mark.parametrize("case", CASES)
def test_the_numbers_are_those_of_numpy_whatever_the_devices(case):
    """Own: the order that the step itself uses. Reshuffled: keys among other images, most of them of other groups."""
    c, devices = CASES[case]
    found, queue = alarm(c, leaky=True, devices=devices)
    own, _ = accuracy(c, queue, leaky=True, anew=False)
    reshuffled, left = accuracy(c, queue, leaky=True, anew=True)
    assert left > 0.6
    assert found["pretext_own"] == pytest.approx(own) and found["pretext_reshuffled"] == pytest.approx(reshuffled)
    assert found["leak"] == pytest.approx(own - reshuffled)


def test_it_warns_of_a_leak_and_names_cause_and_key():
    """Shuffle off: every key is found by its group's mean, few are among other images."""
    found, _ = alarm(BASE, leaky=True, devices=8)
    assert found["pretext_own"] == 1.0 and found["leak"] > 0.5
    assert "pretext accuracy falls from 100.0% to" in found["warning"]
    assert "batch statistics that query and key share" in found["warning"]
    advice = "shuffle.block is 0 and bn.group_size 4: begin anew with --config.shuffle.block=16 and another --workdir"
    assert advice in found["warning"]


def test_it_is_silent_with_the_shuffle_on():
    """The same encoder; the run's own order is as good as any other."""
    found, _ = alarm(CASES["on"][0], leaky=True, devices=8)
    assert found["pretext_own"] < 0.5 and abs(found["leak"]) < 0.1 and "warning" not in found


def test_it_is_silent_about_an_accuracy_that_is_earned():
    """Shuffle off and 100 %, by what is in the image: nothing falls, so nothing leaks."""
    found, _ = alarm(BASE, leaky=False, devices=8)
    assert found == {"pretext_own": 1.0, "pretext_reshuffled": 1.0, "leak": 0.0}


def test_the_margin_is_the_configs():
    """A fall within leak.margin is a number in the log and no warning."""
    fall = alarm(BASE, leaky=True, devices=8)[0]["leak"]
    found, _ = alarm(dataclasses.replace(BASE, leak=config.Leak(margin=fall + 1e-3)), leaky=True, devices=8)
    assert found["leak"] == fall and "warning" not in found


def train(folder, **changes):
    """Two epochs of four steps with the leaky encoder."""
    c = dataclasses.replace(
        BASE,
        data=config.Data(mean=(0.5,) * CHANNELS, std=(0.25,) * CHANNELS),
        views=config.Views(size=tiny.SIZE),
        train=Train(epochs=2),
        eval=config.Eval(every_epochs=0),
        leak=config.Leak(every_epochs=1),
        consistency=config.Consistency(every_epochs=0),
    )
    c = dataclasses.replace(c, **changes)
    coder = encoder(c.bn.group_size, leaky=True)
    pretrain.train(c, folder, source=ArraySource(STORED), encoder=coder, recipe=RECIPE)


def test_a_run_without_labels_is_warned_in_log_and_console(tmp_path, capsys):
    """After every leak.every_epochs; shuffle off, kNN off, images without labels, streamed."""
    train(tmp_path, data=config.Data(path="streamed", mean=(0.5,) * CHANNELS, std=(0.25,) * CHANNELS))
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    leaks = [r for r in records if "leak" in r]
    assert [r["step"] for r in leaks] == [4, 8]
    assert all(r["leak"] > 0.1 and "shuffle.block=16" in r["warning"] for r in leaks)
    out = capsys.readouterr().out
    assert out.count("warning: keys leak through batch norm: pretext accuracy falls from") == 2
    assert out.count("pretext_reshuffled") == 2


@pytest.mark.parametrize(
    ("changes", "every"),
    [
        ({}, [4]),
        ({"shuffle": Shuffle(16)}, [4]),
        ({"leak": config.Leak(every_epochs=0)}, [0]),
        ({"bn": BatchNorm(16)}, []),
        ({"bn": BatchNorm(0)}, []),
    ],
    ids=["off", "on", "not asked for", "one group", "group 0"],
)
def test_the_alarm_is_set_where_there_is_something_to_permute(changes, every, monkeypatch, tmp_path):
    """In steps; where there is nothing to permute there is no number that would say "no leak"."""
    seen = []
    monkeypatch.setattr(pretrain, "run", lambda *_, evaluations, **__: seen.extend(evaluations))
    monkeypatch.setattr(parallel, "born", lambda init: None)
    train(tmp_path, **changes)
    assert [e.every for e in seen] == every
