"""Flags: pages by name or path, typed overrides, and one clear line for every slip."""

import os
import re
import time

import jax
import pytest
from ml_collections import ConfigDict

from moco_jax import cli, config, pages, protocols
from moco_jax.cli import flags
from moco_jax.config import ConfigError

NAMED = {"workdir": ("runs/x", "folder")}


def parse(*argv, page="digits"):
    read, named = flags.parse(argv, page=page, named=NAMED, usage="usage")
    return config.read(read), named


def test_defaults_to_its_page_and_its_named_values():
    """No argument at all is a complete run."""
    read, named = parse()
    assert read.data.dataset == "digits" and named == {"workdir": "runs/x"}


def test_page_by_name_by_path_and_overrides(tmp_path):
    """Names are those of shipped pages; a path is the user's own page, built on `page()` or a shipped one."""
    assert parse("--config=moco_v2_r50")[0].moco.temperature == 0.2
    own = tmp_path / "own.py"
    own.write_text(
        "from moco_jax.pages import load\ndef get_config():\n  c = load('digits')\n  c.seed = 7\n  return c\n"
    )
    read, named = parse(f"--config={own}", "--config.moco.temperature=0.5", "--config.data.mean=(0.1,)", "--workdir=w")
    assert (read.seed, read.moco.temperature, read.data.mean, named["workdir"]) == (7, 0.5, (0.1,), "w")


def test_none_and_booleans():
    """Keys that may be None can be set to it again; `--noconfig.x` is absl's way to say false."""
    assert parse("--config.queue.size=None", "--config.data.data_dir=None")[0].queue.size is None
    assert parse("--config.moco.symmetric=true")[0].moco.symmetric
    assert not parse("--noconfig.moco.symmetric")[0].moco.symmetric


def test_a_switch_is_given_with_or_without_a_value():
    """A named flag whose default is False; text stays what other flags hold."""
    named = {"workdir": ("runs/x", "folder"), "dry_run": (False, "nothing is written")}

    def switch(*argv):
        return flags.parse(argv, page="digits", named=named, usage="usage")[1]["dry_run"]

    assert switch() is False and switch("--nodry_run") is False and switch("--dry_run=false") is False
    assert switch("--dry_run") is True and switch("--dry_run=true", "--workdir=true") is True
    for argv, message in (
        (["--dry_run=maybe"], "--dry_run must be true or false, not 'maybe'"),
        (["--dry_run", "true"], "unexpected argument 'true'"),
        (["--noworkdir"], "flag 'noworkdir' is unknown"),
    ):
        with pytest.raises(ConfigError, match=message):
            switch(*argv)


@pytest.mark.parametrize("parsed", ["with a page", "without one"])
def test_a_flag_holds_what_its_default_is(parsed):
    """A number, of its kind; a switch; or text."""
    named = {"n": (3, "a count"), "seconds": (1.0, "how long"), "all": (False, "everything"), "output": (None, "file")}

    def values(*argv):
        if parsed == "with a page":
            return flags.parse(argv, page="digits", named=named, usage="usage")[1]
        return flags.parse_without_page(argv, places={}, named=named, usage="usage")[1]

    assert values() == {"n": 3, "seconds": 1.0, "all": False, "output": None}
    given = values("--n=12", "--seconds=2", "--all", "--output=1")
    assert given == {"n": 12, "seconds": 2.0, "all": True, "output": "1"}
    assert [type(v) for v in given.values()] == [int, float, bool, str] and values("--all=false")["all"] is False
    for argument, message in (
        ("--n=x", "--n must be a whole number, not 'x'"),
        ("--n=2.5", "--n must be a whole number, not '2.5'"),
        ("--n=-1", "--n must be a whole number, not '-1'"),
        ("--seconds=soon", "--seconds must be a number, not 'soon'"),
        ("--seconds=nan", "--seconds must be a number, not 'nan'"),
        ("--seconds=inf", "--seconds must be a number, not 'inf'"),
        ("--all=maybe", "--all must be true or false, not 'maybe'"),
        ("--m=1", "flag 'm' is unknown"),
    ):
        with pytest.raises(ConfigError, match=message):
            values(argument)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--config=moco_v3_r50"], "no config page 'moco_v3_r50'; did you mean 'moco_v2_r50'"),
        (["--config=none/such.py"], "no config page 'none/such.py'"),
        (["--config.moco.temprature=3"], "config key 'moco.temprature' is unknown; did you mean 'moco.temperature'"),
        (["--config.temperature=3"], "config key 'temperature' is unknown; did you mean 'moco.temperature'"),
        (["--config.batch_size=1e3"], "'batch_size' must be a whole number, not '1e3'"),
        (["--config.batch_size=None"], "'batch_size' must be int, not None"),
        (["--config.moco.symmetric=maybe"], "'moco.symmetric' must be true or false, not 'maybe'"),
        (["--workdri=x"], "flag 'workdri' is unknown; did you mean 'workdir'"),
        (["--learning_rate=1"], "flag 'learning_rate' is unknown; did you mean 'config.optimizer.learning_rate'"),
        (["digits"], "unexpected argument 'digits'"),
        (["--config", "digits"], "write --config=digits, with an equals sign"),
        (["--config=digits", "--config=xray"], "--config is given twice, the second time as xray: give one page"),
        (
            ["--config=memory_bank_r50", "--config.queue.size=3"],
            "is of mechanism moco; .* of memory_bank, .* memory_bank",
        ),
        (["--config=memory_bank_r50", "--config.shuffle.block=3"], "is of mechanism moco or end_to_end; this page"),
        (["--config=memory_bank_r50", "--config.memory_bank.sizes=3"], "did you mean 'memory_bank.size'"),
        (["--config.mechanism=memory_bank"], r"the mechanism is the page's \(moco\), .* use another --config"),
    ],
)
def test_a_slip_is_named(argv, message):
    """What is wrong and what to write, in one line."""
    with pytest.raises(ConfigError, match=message) as error:
        parse(*argv)
    assert "\n" not in str(error.value)


def test_help_lists_every_key_with_its_comment(capsys):
    """The schema's own comments, so that help cannot go stale."""
    with pytest.raises(SystemExit) as done:
        parse("--help")
    assert done.value.code == 0
    text = capsys.readouterr().out
    assert all(f"  {key} = " in text for key in config.flat(parse()[0]))
    assert "moco.temperature = 0.1" in text and "images that share batch statistics" in text


def test_help_is_that_of_the_page_that_is_given(capsys):
    """Another mechanism has other keys."""
    with pytest.raises(SystemExit):
        parse("--config=memory_bank_r50", "--help")
    text = capsys.readouterr().out
    assert "  memory_bank.size = 65536" in text and "  moco.temperature" not in text and "(default digits)" in text


def test_a_page_that_asks_for_a_key_that_there_is_not_names_its_line(tmp_path):
    """As one of another mechanism does, whose first line was changed."""
    page = tmp_path / "mine.py"
    page.write_text(
        "from moco_jax.config import page\n\ndef changed(config):\n    config.moco.momentum = 0.9\n"
        "    return config\n\ndef get_config():\n    return changed(page('memory_bank'))\n"
    )
    with pytest.raises(ConfigError, match=r"mine.py, line 4: no such key or section: .*moco"):
        parse(f"--config={page}")


def test_commands(capsys):
    """The one program: help is 0, an unknown command 2, an error of the user's 1 in one line."""
    assert cli.main(["--help"]) == 0 and cli.main([]) == 0
    assert cli.main(["trian"]) == 2
    assert "'trian' is unknown; did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", list(protocols.PROTOCOLS))
def test_help_explains_every_key_of_an_evaluation(name):
    """By its own comment, sections included, as that of a training run does."""
    page = protocols.page(name)
    told = {key: (value, comment) for key, value, comment in pages.explained(page)}
    flat = {key: page[key] for key in page if not isinstance(page[key], ConfigDict)}
    flat |= {f"{key}.{k}": v for key in page if key not in flat for k, v in page[key].items()}
    assert {key: value for key, (value, _) in told.items()} == flat
    assert all(comment for _, comment in told.values())


@pytest.mark.parametrize("command", list(cli.COMMANDS))
def test_every_command_shows_an_example_and_no_default_that_is_none(command, capsys):
    """`--help` of each has a line to copy, and says neither None nor 2.0 where a user writes nothing or 2."""
    with pytest.raises(SystemExit, match="0"):
        cli.main([command, "--help"])
    out = capsys.readouterr().out
    assert f"\n  moco-jax {command} " in out
    assert "default None" not in out and not re.search(r"default [0-9]+\.0\)", out)


def test_an_error_of_the_users_is_one_line_and_status_one(capsys):
    """No traceback for a typo."""
    assert cli.main(["train", "--config.sed=1"]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith("error: config key 'sed' is unknown; did you mean 'seed'")
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "status", "begins"),
    [
        ("UNKNOWN: Gloo AllGather failed: Read error: Connection reset by peer", 134, "error: another process of this"),
        (
            "INTERNAL: ncclRemoteError: remote process exited or there was a network error",
            134,
            "error: another process",
        ),
        ("RESOURCE_EXHAUSTED: Out of memory allocating 4096 bytes", 1, "Traceback"),
    ],
)
def test_a_collective_without_its_peer_ends_as_jax_does(monkeypatch, capsys, text, status, begins):
    """One line and the status that means "start again"; anything else of XLA's stays a traceback."""

    def command(_):
        raise jax.errors.JaxRuntimeError(text)

    def left(status):
        raise SystemExit(status)

    with pytest.raises(jax.errors.JaxRuntimeError):  # one process has no others
        flags.run(command, [])
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(os, "_exit", left)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(SystemExit) as end:
        flags.run(command, [])
    assert end.value.code == status and capsys.readouterr().err.startswith(begins)
