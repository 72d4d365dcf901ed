"""The API reference, `docs/api.md`, from signatures and docstrings: `python -m docs.make_api` (or `make docs`).

Nothing is imported: sources are parsed. What is listed here is public; everything else may change without notice.
"""

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
PUBLIC = {  # heading: (file below moco_jax/, names in the order of the page)
    "moco_jax": (("pretrain.py", ("train", "Result")), ("evaluation/loading.py", ("load_encoder",))),
    "moco_jax.config": (("config.py", ("page", "read", "to_json")),),
    "moco_jax.protocols": (
        ("protocols.py", ("page", "read", "Linear", "Finetune", "Fit", "Knn", "Transfer", "Labelled")),
    ),
    "moco_jax.dry_run": (("dry_run.py", ("report", "Plan", "Pace")), ("costs.py", ("Memory",))),
    "moco_jax.data.sources": (("data/sources.py", ("Source", "ArraySource")),),
    "moco_jax.data.measured": (("data/measured.py", ("measure", "Measured")),),
    "moco_jax.data.opening": (("data/opening.py", ("open_split",)),),
    "moco_jax.data.order": (("data/order.py", ("PairRule", "same_record", "same_group", "ids", "steps_per_epoch")),),
    "moco_jax.views.recipes": (
        (
            "views/recipes.py",
            (
                "ViewRecipe",
                "Crop",
                "Grayscale",
                "ColorJitter",
                "GaussianBlur",
                "Solarize",
                "BandGain",
                "ChannelDrop",
                "HorizontalFlip",
                "VerticalFlip",
                "Affine",
                "get",
            ),
        ),
    ),
    "moco_jax.models.encoder": (("models/encoder.py", ("build", "Encoder", "from_config")),),
    "moco_jax.models.batch_norm": (("models/batch_norm.py", ("GroupBatchNorm",)),),
    "moco_jax.loop": (("loop.py", ("Evaluator",)),),
    "moco_jax.evaluation": (
        ("evaluation/encoder.py", ("FrozenEncoder", "Preprocessing")),
        ("evaluation/features.py", ("extract",)),
    ),
    "moco_jax.reports": (
        ("reports/runs.py", ("read", "Run")),
        ("reports/compare.py", ("read_reference", "table", "verdict")),
        ("reports/verdict.py", ("of", "Verdict")),
    ),
}
SPECIAL = ("__init__", "__len__", "__getitem__", "__call__")  # shown, though their names begin with _
HEAD = """# API

Made from the docstrings by `make docs`; a test says when it is stale. How the parts fit, and what each may rely on, is
in [design.md](design.md#the-seams). Names that are not here may change without notice.
"""


def page() -> str:
    """The whole reference as text."""
    parts = [HEAD]
    for heading, sources in PUBLIC.items():
        parts.append(f"## {heading}\n")
        for file, names in sources:
            text = (ROOT / "moco_jax" / file).read_text()
            found = {name: node for node in ast.parse(text).body for name in defined(node)}
            parts += [entry(found[name], name, text.splitlines(), f"{file}: {name}") for name in names]
    parts.append("## Keys of a training page\n\n" + keys("config.py", "Config"))
    for root in ("Linear", "Finetune", "Knn", "Transfer"):
        parts.append(f"## Keys of a page of `{root.lower()}`\n\n" + keys("protocols.py", root))
    return "\n".join(parts)


def defined(node: ast.stmt) -> list[str]:
    """Names that a statement of a module defines."""
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return [node.name]
    return [t.id for t in node.targets if isinstance(t, ast.Name)] if isinstance(node, ast.Assign) else []


def entry(node: ast.stmt, name: str, lines: list[str], where: str) -> str:
    """A function, class or alias: its head, its fields or methods, its docstring."""
    if isinstance(node, ast.Assign):
        return f"### `{name}`\n\n```python\n{ast.unparse(node)}\n```\n\n{above(node, lines)}\n"
    if isinstance(node, ast.FunctionDef):
        body = signature(node)
    else:
        bases = ", ".join(ast.unparse(b) for b in node.bases)
        body = "\n".join([f"class {name}({bases}):" if bases else f"class {name}:", *members(node, lines)])
    doc = ast.get_docstring(node)
    if not doc:
        raise SystemExit(f"{where} has no docstring")
    return f"### `{name}`\n\n```python\n{body}\n```\n\n{doc}\n"


def signature(node: ast.FunctionDef, indent: str = "") -> str:
    """`def name(...) -> ...`, an argument per line where it is long."""
    line = (
        f"{indent}def {node.name}({ast.unparse(node.args)}) -> {ast.unparse(node.returns) if node.returns else 'None'}"
    )
    if len(line) <= 110:
        return line
    arguments = re.split(r", (?![^\[(]*[\])])", ast.unparse(node.args))
    return "\n".join(
        [f"{indent}def {node.name}(", *(f"{indent}    {a}," for a in arguments), f"{indent}) {line.rsplit(') ', 1)[1]}"]
    )


def members(node: ast.ClassDef, lines: list[str]) -> list[str]:
    """Fields with the comments beside or above them, and public methods, as written."""
    out = []
    for child in node.body:
        if isinstance(child, ast.AnnAssign):
            comment = lines[child.lineno - 2].strip()
            out += [f"    {comment}"] * comment.startswith("#")
            out += [f"    {line.strip()}" for line in lines[child.lineno - 1 : child.end_lineno]]
        elif isinstance(child, ast.FunctionDef) and (child.name in SPECIAL or not child.name.startswith("_")):
            out.append(signature(child, "    "))
    return out or ["    ..."]


def above(node: ast.stmt, lines: list[str]) -> str:
    """The comment over a statement, as prose."""
    first = node.lineno - 1
    while first and lines[first - 1].startswith("#"):
        first -= 1
    return " ".join(line.lstrip("# ") for line in lines[first : node.lineno - 1])


def keys(file: str, root: str) -> str:
    """A table of every key below a class of a schema: default and meaning, as the comments there say."""
    text = (ROOT / "moco_jax" / file).read_text()
    classes = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for field in classes[root].body:
        if not isinstance(field, ast.AnnAssign):
            continue
        name, kind = ast.unparse(field.target), ast.unparse(field.annotation).split(" | ")[0]
        inner = [f for f in classes[kind].body if isinstance(f, ast.AnnAssign)] if kind in classes else [field]
        for f in inner:
            key = f"{name}.{ast.unparse(f.target)}" if kind in classes else name
            comment = text.splitlines()[f.end_lineno - 1].partition("  # ")[2].replace("|", "\\|")
            rows.append(f"| `{key}` | `{ast.unparse(f.value) if f.value else ''}` | {comment} |")
    return "\n".join(rows) + "\n"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
