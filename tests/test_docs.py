"""What the documentation names exists: files, functions, tests."""

import ast
import re
from pathlib import Path

import pytest

import moco_jax
from docs import make_api
from moco_jax import config, pages, protocols

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
NAMED = re.compile(r"`((?:[\w.-]+/)*[a-z_0-9]+\.py)(?:::(\w+))?`")  # file.py or file.py::name; NAME.py is nobody's


def named(text):
    """(file, name or "") of everything in backticks that is a Python file."""
    return set(NAMED.findall(text))


def complaint(file, name):
    """What is wrong with a file and name, "" for nothing; paths are below the root, the package or the tests."""
    found = [p for p in (ROOT / file, ROOT / "moco_jax" / file, ROOT / "tests" / file) if p.is_file()]
    if not found:
        return f"{file} does not exist"
    if name and name not in set(defined(ast.parse(found[0].read_text()))):
        return f"{file} has no {name}"
    return ""


def defined(module):
    """Names of a module's functions, classes and tables."""
    for node in module.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (t.id for t in targets if isinstance(t, ast.Name))
        elif hasattr(node, "name"):
            yield node.name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_what_a_page_names_exists(page):
    """A renamed function or test takes its page along."""
    wrong = [c for c in (complaint(*n) for n in sorted(named(page.read_text()))) if c]
    assert not wrong, wrong


def test_a_wrong_name_is_seen():
    """The rule can fail: an unknown file, an unknown function; a known one passes."""
    text = "`core/ema.py::ema`, `core/emo.py`, `core/ema.py::average`, `pytest tests/x.py`"
    assert [complaint(*n) for n in sorted(named(text))] == [
        "core/ema.py has no average",
        "",
        "core/emo.py does not exist",
    ]


def test_the_api_reference_is_what_the_docstrings_say():
    """`make docs` was run after the last change of a public signature, docstring or key."""
    assert make_api.PAGE.read_text() == make_api.page(), "docs/api.md is stale: run make docs"


def test_the_api_reference_holds_every_key_and_what_the_package_exports():
    """Nothing public is forgotten; keys are those of the schema, with a meaning each."""
    text = make_api.page()
    rows = dict(re.findall(r"^\| `([\w.]+)` \| `[^|]*` \| (.*) \|$", text, re.MULTILINE))
    assert set(config.flat(config.Config())) <= set(rows) and all(rows.values())
    assert all(f"### `{name}`\n" in text for name in moco_jax.__all__ if name != "__version__")


def test_a_public_name_without_docstring_is_refused():
    """Here rather than in a reader's eyes."""
    node = ast.parse("def f(): ...").body[0]
    with pytest.raises(SystemExit, match=r"a.py: f has no docstring"):
        make_api.entry(node, "f", ["def f(): ..."], "a.py: f")


def test_the_citation_names_this_version():
    """One number, in the package; and both papers."""
    text = (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^version: (.*)$", text, re.MULTILINE) == [moco_jax.__version__]
    assert "arxiv.org/abs/1911.05722" in text and "arxiv.org/abs/2003.04297" in text


def test_every_page_has_a_row_in_the_readme():
    """Published by whom, and this code's own number or that it was not run."""
    table = re.findall(r"^\| `(\w+)` \|(.*)\|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    evaluations = {name for name in pages.names() if name.split("_")[0] in protocols.PROTOCOLS}
    missing = set(pages.names()) - evaluations - {name for name, _ in table}
    assert not missing
    assert all(len(rest.split("|")) == 3 and all(cell.strip() for cell in rest.split("|")) for _, rest in table), table
