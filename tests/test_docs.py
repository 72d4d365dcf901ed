"""What the documentation names exists: files, functions, tests."""

import ast
import re
from pathlib import Path

import pytest

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
