"""Files and functions by length, longest first, to look at and not to enforce: `python -m tests.sizes`."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1] / "moco_jax"


def main() -> None:
    """Print the ten longest files and functions of the package."""
    files, functions = [], []
    for path in sorted(ROOT.rglob("*.py")):
        text, name = path.read_text(), path.relative_to(ROOT.parent).as_posix()
        files.append((text.count("\n"), name))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                functions.append((node.end_lineno - node.lineno + 1, f"{name}:{node.lineno} {node.name}"))
    for title, rows in ((f"{len(files)} files", files), (f"{len(functions)} functions", functions)):
        lengths = sorted(length for length, _ in rows)
        print(f"{title}, median {lengths[len(lengths) // 2]} lines; the longest:")
        print("\n".join(f"  {length:4} {where}" for length, where in sorted(rows, reverse=True)[:10]))


if __name__ == "__main__":
    main()
