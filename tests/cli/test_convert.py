"""`moco-jax convert`: flags to one call, and one line for every slip."""

import pytest

from moco_jax import cli
from moco_jax.conversion import convert


@pytest.fixture
def calls(monkeypatch):
    heard = []
    monkeypatch.setattr(convert, "convert", lambda *places, say, **named: heard.append((places, named)))
    return heard


def test_flags_reach_the_conversion(calls):
    """Each under its name; without a page there is none."""
    assert cli.main(["convert", "a", "b", "--format=pth"]) == 0
    named = {"which": "online", "config": None, "classifier": None, "sha256": None, "licence": None, "flags": []}
    assert calls == [(("a", "b", "pth"), named)]
    flags = ["--format=timm", "--encoder=target", "--classifier=c", "--sha256=d", "--license=mit"]
    assert cli.main(["convert", *flags, "a", "b"]) == 0
    given = {"which": "target", "config": None, "classifier": "c", "sha256": "d", "licence": "mit", "flags": []}
    assert calls[1:] == [(("a", "b", "timm"), given)]


def test_a_page_and_its_overrides_are_the_run_that_goes_on(calls):
    """As train takes them."""
    page = ["--config=moco_v2_r50", "--config.batch_size=64", "--config.queue.size=128"]
    assert cli.main(["convert", "a", "b", "--format=orbax", *page]) == 0
    config = calls[0][1]["config"]
    assert calls[0][1]["flags"] == page
    assert (config.batch_size, config.queue.size, config.model.head) == (64, 128, "mlp")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "error: SRC is missing: usage: moco-jax convert SRC DST --format=FORMAT"),
        (["a"], "error: DST is missing"),
        (["a", "b", "c", "--format=pth"], "error: unexpected argument 'c'"),
        (["a", "b"], "error: --format=FORMAT is missing: orbax, pth.tar, pth, timm, huggingface or detectron2"),
        (["a", "b", "--format=pth", "--layer=1"], "error: flag 'layer' is unknown"),
        (["a", "b", "--format=orbax", "--config=none"], "error: no config page 'none'"),
        (["a", "b", "--format=orbax", "--config.batch_size=3"], "error: --config.batch_size=3: name the page"),
        (["a", "b", "--format=orbax", "--config", "digits"], "error: --config: name the page by --config=PAGE"),
        (["a", "b", "--format=orbax", "--config=knn"], "error: this is no page of a training run"),
    ],
)
def test_a_slip_is_one_line(argv, message, capsys, tmp_path, monkeypatch):
    """With status 1, and nothing written."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["convert", *argv]) == 1
    said = capsys.readouterr().err
    assert said.startswith(message) and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_help_has_an_example_for_every_format(capsys):
    """And every flag."""
    with pytest.raises(SystemExit) as done:
        cli.main(["convert", "--help"])
    text = capsys.readouterr().out
    assert done.value.code == 0 and all(f"--format={name}" in text or name in text for name in convert.FORMATS)
    assert all(f"--{name}=" in text for name in ("format", "encoder", "classifier", "sha256", "license", "config"))
