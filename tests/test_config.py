"""The schema: complete, typed, locked; every wrong key or value in one clear line."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from moco_jax import config, protocols
from moco_jax.config import ConfigError

ROOT = Path(__file__).parents[1]


def test_page_and_read_are_inverse():
    """The ConfigDict of the defaults reads back as the defaults, and so does a config's JSON."""
    assert config.read(config.page()) == config.Config()
    assert config.read(json.loads(json.dumps(config.to_json(config.Config())))) == config.Config()


def test_page_is_locked_and_typed():
    """A page cannot invent a key, nor give a number where a name belongs."""
    page = config.page()
    with pytest.raises(AttributeError):
        page.moco.temprature = 0.1
    with pytest.raises(TypeError):
        page.views.recipe = 3


def test_none_keeps_its_type():
    """queue.size is None until set, and then an int only."""
    page = config.page()
    page.queue.size = 512
    assert config.read(page).queue.size == 512
    with pytest.raises(TypeError):
        page.queue.size = "many"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"moco": {"temprature": 0.1}}, "'moco.temprature' is unknown; did you mean 'moco.temperature'"),
        ({"bacth_size": 1}, "'bacth_size' is unknown; did you mean 'batch_size'"),
        ({"batch_size": 2.5}, "'batch_size' must be int, not 2.5"),
        ({"batch_size": True}, "'batch_size' must be int, not True"),
        ({"moco": {"symmetric": 1}}, "'moco.symmetric' must be bool, not 1"),
        ({"data": {"mean": 0.5}}, "'data.mean' must be a tuple"),
        ({"data": {"range": [1.0]}}, "'data.range' must hold 2 values, not 1"),
        ({"data": 3}, "'data' is a section"),
        ({"mechanism": "moko"}, "mechanism 'moko' is unknown"),
    ],
)
def test_wrong_key_or_type_is_named(change, message):
    """What, and what to write instead."""
    values = config.to_json(config.Config())
    for name, value in change.items():
        if isinstance(value, dict):
            values[name] = values[name] | value
        else:
            values[name] = value
    with pytest.raises(ConfigError, match=message):
        config.read(values)


def test_missing_key_is_named():
    """A page is complete: there is no hidden default."""
    values = config.to_json(config.Config())
    del values["moco"]["temperature"]
    with pytest.raises(ConfigError, match="'moco.temperature' is missing"):
        config.read(values)


def test_int_reads_as_float_and_list_as_tuple():
    """JSON knows no tuple, and 1 is a fine temperature; nothing else is converted."""
    values = config.to_json(config.Config())
    values["moco"]["temperature"], values["data"]["mean"] = 1, [0, 1]
    read = config.read(values)
    assert read.moco.temperature == 1.0 and type(read.moco.temperature) is float
    assert read.data.mean == (0.0, 1.0)


def test_config_pages_and_help_do_not_import_jax():
    """`--help` answers at once, and flags are parsed before devices are chosen."""
    code = (
        "import sys, moco_jax, moco_jax.cli.flags; from moco_jax import pages\n"
        "for p in pages.folder().glob('*.py'): pages.load(p.stem)\n"
        "heavy = {'jax', 'flax', 'tensorflow', 'tensorflow_datasets', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_a_config_stored_by_an_older_version_reads_with_defaults():
    """A key that came later has the value that the code had before; an unknown one is still an error."""
    stored = json.loads(json.dumps(config.to_json(config.Config(seed=5))))
    del stored["moco"]["symmetric"], stored["log"]
    assert config.read_stored(stored) == config.Config(seed=5)
    with pytest.raises(ConfigError, match="'moco.flux' is unknown"):
        config.read_stored(stored | {"moco": {"flux": 1}})


def test_a_page_of_the_other_kind_is_refused():
    """An evaluation's page for training, the reverse, and that of another evaluation."""
    with pytest.raises(ConfigError, match="no page of a training run"):
        config.read(protocols.page("linear"))
    with pytest.raises(ConfigError, match="the page of a training run; here one of 'linear' is needed"):
        protocols.read(config.page(), protocols.Linear)
    with pytest.raises(ConfigError, match="the page of an evaluation 'knn'; here one of 'linear'"):
        protocols.read(protocols.page("knn"), protocols.Linear)
