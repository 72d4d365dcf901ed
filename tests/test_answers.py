"""What the questions and the table of flags say is true of the program."""

import dataclasses
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moco_jax import config, protocols
from moco_jax.cli import eval_linear, train
from tests import tiny

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

COMMON = "data -a --arch -j --workers --epochs --start-epoch -b --batch-size --lr --learning-rate --schedule --momentum"
COMMON += " --wd --weight-decay -p --print-freq --resume --world-size --rank --dist-url --dist-backend --seed --gpu"
COMMON += " --multiprocessing-distributed"
FLAGS = {  # every add_argument of facebookresearch/moco at 132aea9
    "main_moco.py": f"{COMMON} --moco-dim --moco-k --moco-m --moco-t --mlp --aug-plus --cos".split(),
    "main_lincls.py": f"{COMMON} -e --evaluate --pretrained".split(),
}
KEYS = {
    "main_moco.py": {*config.flat(config.Config()), *(f"--{name}" for name in train.NAMED)},
    "main_lincls.py": {*config.flat(protocols.Linear()), *(f"--{n}" for n in eval_linear.NAMED)},
}
NO_KEYS = {
    "log.jsonl",
    "model.safetensors",
    "train.py",
    "data.order",
    "views.make",
    "views.raw",
    "views.augment",
}  # files and functions
OUTSIDE = re.compile(r"JAX_\w+|CUDA_\w+|encoder=")  # of the environment, or an argument of train


def rows(text):
    """{script: [(flags, what is named beside them)]} of the tables under its heading."""
    found, script = {}, ""
    for line in text.splitlines():
        if line.startswith("## "):
            script = line[3:]
        cells = [re.findall(r"`([^`]+)`", cell) for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            found.setdefault(script, []).append((cells[0], [name for cell in cells[1:] for name in cell]))
    return found


@pytest.mark.parametrize("script", FLAGS)
def test_every_flag_of_the_original_has_a_row(script):
    """Each once, with its short form; and every key that a row names is one of the schema's."""
    table = rows((ROOT / "docs" / "flags.md").read_text())[script]
    assert sorted(flag for flags, _ in table for flag in flags) == sorted(FLAGS[script])
    wrong = {name for _, names in table for name in names if name not in KEYS[script] and not OUTSIDE.fullmatch(name)}
    assert not wrong


def keys_of(text):
    """Config keys that a page writes as --config.KEY, as `section.key`, or as `section.key=value`."""
    sections = "|".join(f.name for f in dataclasses.fields(config.Config) if f.name != "mechanism")
    written = re.findall(r"--config\.([a-z_.]+)", text)
    return {*written, *re.findall(rf"`((?:{sections})\.[a-z_]+)(?:=[^`]*)?`", text)}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_config_keys_that_a_page_names_exist(page):
    """A renamed key takes its documentation along; keys of a probe have no section."""
    known = {key for name in config.SECTIONS for key in config.flat(config.read(config.page(name)))}.union(
        *(config.flat(kind()) for kind in protocols.PROTOCOLS.values())
    )
    assert keys_of(page.read_text()) - known - NO_KEYS == set()


def test_a_wrong_key_is_seen():
    """In each of the three ways of writing it, and a right one is not."""
    assert keys_of("--config.queue.sise=3, `queue.sise=2`, `moco.m`, `bn.group_size`, queue.x") == {
        "queue.sise",
        "moco.m",
        "bn.group_size",
    }


def test_an_encoder_starts_from_the_weights_that_its_init_returns():
    """As the questions say of weights from elsewhere: online and target begin with them."""
    c = tiny.config()
    stored = tiny.images()
    encoder = tiny.small_encoder(c, 3, batch_norm=False)
    given = jax.tree.map(lambda a: jnp.full(a.shape, 0.5), jax.eval_shape(encoder.init, jax.random.key(0)))
    state = tiny.mechanism(c, stored, tiny.LIGHT, encoder._replace(init=lambda key: given)).init()
    for network in (state.online, state.target):
        assert all(np.all(np.asarray(leaf) == 0.5) for leaf in jax.tree.leaves(network.params))
