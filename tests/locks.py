"""The versions of this environment as a file of constraints: `make lock` writes requirements-lock-X.Y.txt."""

import importlib.metadata
import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
HEAD = """\
# Versions that the tests were run with on Python {python} on Linux, by `make lock`. Constraints, not requirements:
#     pip install -c requirements-lock-{python}.txt -e ".[dev]"
"""


def project() -> dict:
    """What pyproject.toml says of the project."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def wanted() -> list[str]:
    """What `make env` installs: the dependencies, and those of the extra `dev`."""
    return project()["dependencies"] + project()["optional-dependencies"]["dev"]


def canonical(name: str) -> str:
    """A package's name as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def versions(requirements: list[str]) -> dict[str, str]:
    """{name: version} of these and of all that they need, as installed here."""
    found: dict[str, str] = {}
    done: set[tuple[str, str]] = set()
    todo = [(Requirement(r), "") for r in requirements]
    while todo:
        requirement, extra = todo.pop()
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": extra}):
            continue
        distribution = importlib.metadata.distribution(requirement.name)
        found[canonical(requirement.name)] = distribution.version
        for extra in ("", *requirement.extras):
            if (key := (canonical(requirement.name), extra)) not in done:
                done.add(key)
                todo += [(Requirement(r), extra) for r in distribution.requires or []]
    return dict(sorted(found.items()))


def main() -> None:
    """Write the file of this Python."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    path = ROOT / f"requirements-lock-{python}.txt"
    lines = [f"{name}=={version}\n" for name, version in versions(wanted()).items()]
    path.write_text(HEAD.format(python=python) + "".join(lines))
    print(f"{path.name}: {len(lines)} packages")


if __name__ == "__main__":
    main()
