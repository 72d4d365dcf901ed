"""What may change within a run: key by key, so that a new key is a decision and not an accident."""

import dataclasses
import json

import pytest

from moco_jax import checks
from moco_jax.config import Config, ConfigError, flat, read_stored, to_json

CONFIG = checks.resolve(Config(), 1200)

# None of these changes a bit of the state: where data lie, how fast they come, what is measured, kept and logged.
FREE = {
    "checkpoint.every_epochs",
    "checkpoint.keep",
    "data.array",
    "data.data_dir",
    "data.folder",
    "data.label_feature",
    "data.manifest",
    "data.max_bad_fraction",
    "data.workers",
    "eval.batch_size",
    "eval.bank_split",
    "eval.data",
    "eval.data_dir",
    "eval.every_epochs",
    "eval.feature",
    "eval.image_feature",
    "eval.k",
    "eval.label_feature",
    "eval.resize",
    "eval.split",
    "eval.temperature",
    "leak.every_epochs",
    "leak.margin",
    "consistency.every_epochs",
    "log.every_steps",
    "log.tensorboard",
    "queue.chunk",
    "train.heartbeat_seconds",
    "train.init_from",  # the weights behind it are compared instead: tests/test_initial.py
    "train.max_skipped",
    "train.microbatch_size",
    "train.steps_per_call",
}


def another(value):
    """A value of the same kind that is not this one."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return (*value, 1)
    return 7 if value is None else value + ("x" if isinstance(value, str) else 1)


def changed(name):
    """The config with one key changed."""
    section, _, key = name.rpartition(".")
    value = another(flat(CONFIG)[name])
    if not section:
        return dataclasses.replace(CONFIG, **{key: value})
    return dataclasses.replace(CONFIG, **{section: dataclasses.replace(getattr(CONFIG, section), **{key: value})})


@pytest.mark.parametrize("name", sorted(flat(CONFIG)))
def test_a_key_changed_alone_is_another_run_unless_it_is_free(name):
    """Asked for or stored, the change is named; what is free is not looked at."""
    for ours, stored in ((changed(name), CONFIG), (CONFIG, changed(name))):
        if name in FREE:
            checks.check_same_run(ours, stored, "runs/a")
            continue
        with pytest.raises(ConfigError) as error:
            checks.check_same_run(ours, stored, "runs/a")
        assert f"runs/a holds another run: {name} {flat(stored)[name]!r} -> {flat(ours)[name]!r};" in str(error.value)


def test_every_free_key_exists():
    """By key or by section: a prefix that fits nothing, or a key listed here that went away, is a mistake."""
    names = set(flat(CONFIG))
    assert names >= FREE
    assert all(any(name.startswith(prefix) for name in FREE) for prefix in checks.FREE)
    assert {name for name in names if name.startswith(checks.FREE)} == FREE


def test_several_changes_are_all_named():
    """So that they can be undone at once."""
    ours = dataclasses.replace(changed("moco.temperature"), seed=3)
    with pytest.raises(ConfigError, match=r"moco\.temperature .* -> .*, seed 0 -> 3;"):
        checks.check_same_run(ours, CONFIG, "runs/a")


def test_a_config_is_the_same_run_after_json():
    """Lists of JSON are the tuples that were written."""
    c = dataclasses.replace(CONFIG, optimizer=dataclasses.replace(CONFIG.optimizer, milestones=(3, 5)))
    checks.check_same_run(c, read_stored(json.loads(json.dumps(to_json(c)))), "runs/a")
