"""The house rules, executable: each is a function from a folder to complaints, and is shown what it must refuse."""

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Lowest first. A unit imports itself and lower layers alone, so units of one layer stay apart. "" is moco_jax itself.
LAYERS = (
    ("schema",),
    ("config", "places", "protocols"),
    ("dictionary", "launchers", "pages", "reports", "state"),  # reports read files: nothing above config, so no JAX
    ("core",),
    ("checks", "data", "mechanisms", "models", "parallel", "views"),
    ("checkpoints",),
    ("events", "logs"),
    ("feed", "stopping"),
    ("loop",),
    ("evaluation",),
    ("assembly", "initial", "suggest"),
    ("bad_files", "costs", "gallery", "run_folder"),
    ("pretrain",),
    ("conversion", "dry_run"),
    ("cli",),
    ("", "__main__"),
)
HEIGHT = {unit: i for i, layer in enumerate(LAYERS) for unit in layer}

# What may be named only in some files of moco_jax; an empty tuple means nowhere.
DOORS = {
    "absl.flags": ("cli/",),
    "array_record": ("data/",),
    "etils": ("places.py",),
    "fsspec": ("places.py",),
    "google_crc32c": ("data/tfrecord.py",),
    "grain": ("data/",),
    "importlib.import_module": (),  # a table from name to thing can be searched for, a string cannot
    "ml_collections.config_flags": ("cli/",),
    "orbax": ("checkpoints/arrays.py",),
    "safetensors": ("checkpoints/safetensors_file.py",),
    "tensorflow": (),
    "tensorflow_datasets": ("data/",),
    "timm": ("checkpoints/libraries.py",),
    "torch": ("checkpoints/pytorch.py", "checkpoints/libraries.py"),
    "torchvision": (),
    "transformers": ("checkpoints/libraries.py",),
}
# What can run code that a file names or holds: nowhere, or only so much of it in these files.
RUNS_CODE: dict[str, dict[str, tuple[str, ...]]] = {
    "builtins": {},
    "cloudpickle": {},
    "dill": {},
    "importlib.machinery": {},
    "importlib.util.module_from_spec": {},
    "importlib.util.spec_from_file_location": {},
    "joblib": {},
    "marshal": {},
    "numpy.lib.format": {},
    "pickle": {  # Detectron2's format is written; what torch raises is recognised
        "checkpoints/detectron2.py": ("pickle.dumps",),
        "checkpoints/pytorch.py": ("pickle.UnpicklingError",),
    },
    "pkgutil": {},
    "runpy": {"pages.py": ("runpy.run_path",)},  # a config page is a program of the user's, as SECURITY.md says
    "shelve": {},
    "torch.jit": {},
    "yaml": {},
}
RUNNERS = ("eval", "exec", "compile", "__import__")
SAFE = {"allow_pickle": False, "weights_only": True}  # the one value that may be written
DEVICE_WORDS = {"pmap", "shard_map", "Mesh", "make_mesh", "NamedSharding", "PositionalSharding", "distributed"}
DEVICE_WORDS |= {"device_put", "device_put_replicated", "device_put_sharded", "multihost_utils", "default_backend"}
DEVICE_WORDS |= {"devices", "local_devices", "device_count", "local_device_count", "process_index", "process_count"}

LAZY = (
    "cv2",
    "google_crc32c",
    "matplotlib",
    "pyarrow",
    "safetensors",
    "sklearn",
    "tensorboardX",
    "tifffile",
    "timm",
    "torch",
    "transformers",
)  # a second each, or optional: imported by the function that uses it

# Flags are parsed before JAX is imported, and `import moco_jax` costs nothing.
LIGHT_FILES = (
    "__init__.py",
    "__main__.py",
    "schema.py",
    "config.py",
    "places.py",
    "protocols.py",
    "pages.py",
    "cli/",
    "reports/",
)
LIGHT = (
    "absl",
    "ml_collections",
    "moco_jax.__version__",
    "moco_jax.config",
    "moco_jax.pages",
    "moco_jax.places",
    "moco_jax.cli",
    "moco_jax.schema",
    "moco_jax.protocols",
)
LIGHT += ("moco_jax.reports",)


class File(NamedTuple):
    """A Python file: its path below the folder that was searched, and what it holds."""

    path: str
    tree: ast.Module


class Use(NamedTuple):
    """A dotted name such as jax.sharding.Mesh, where it is imported or used, and whether inside a function."""

    name: str
    line: int
    imported: bool
    lazy: bool


def python_files(folder: Path) -> list[File]:
    """The Python files of a folder; there must be some, or a rule would hold for want of files."""
    paths = sorted(p for p in folder.rglob("*.py") if "__pycache__" not in p.parts)
    assert paths, f"no Python files in {folder}"
    return [File(p.relative_to(folder).as_posix(), ast.parse(p.read_text())) for p in paths]


def uses(file: File) -> Iterator[Use]:
    """Imported names and attributes of imported names, dotted in full; aliases are seen through."""
    known: dict[str, str] = {}
    nodes = list(_walk(file.tree, False))
    for node, lazy in nodes:
        if isinstance(node, ast.Import):
            for a in node.names:
                known[a.asname or a.name.split(".")[0]] = a.name if a.asname else a.name.split(".")[0]
                yield Use(a.name, node.lineno, True, lazy)
        elif isinstance(node, ast.ImportFrom):
            here = ["moco_jax", *Path(file.path).parts][: -node.level or None] if node.level else []
            module = ".".join([*here, *([node.module] if node.module else [])])
            for a in node.names:
                known[a.asname or a.name] = f"{module}.{a.name}"
                yield Use(f"{module}.{a.name}", node.lineno, True, lazy)
    for node, lazy in nodes:
        if isinstance(node, ast.Attribute) and (name := _dotted(node)) and name.split(".")[0] in known:
            first, rest = name.split(".", 1)
            yield Use(f"{known[first]}.{rest}", node.lineno, False, lazy)


def _walk(node: ast.AST, lazy: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        for_types = isinstance(child, ast.If) and _dotted(child.test) == "TYPE_CHECKING"  # never runs
        yield child, lazy
        yield from _walk(
            child, lazy or for_types or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        )


def _dotted(node: ast.AST) -> str:
    """The text of a.b.c, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := _dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def _below(name: str, *prefixes: str) -> bool:
    return any(name == p or name.startswith(p + ".") for p in prefixes)


def imports_go_down(root: Path) -> list[str]:
    """Every unit of moco_jax imports lower layers alone."""
    out = []
    for file in python_files(root / "moco_jax"):
        unit = file.path.split("/")[0].removesuffix(".py").replace("__init__", "")
        if unit not in HEIGHT:
            out.append(f"{file.path}: {unit} has no place in LAYERS")
            continue
        for use in uses(file):
            if not (use.imported and _below(use.name, "moco_jax")) or use.name == "moco_jax.__version__":
                continue
            target = use.name.removeprefix("moco_jax").lstrip(".").split(".")[0]
            target = target if target in HEIGHT else ""  # `from moco_jax import train`: moco_jax itself
            if target != unit and HEIGHT[target] >= HEIGHT[unit]:
                out.append(f"{file.path}:{use.line}: {unit or 'moco_jax'} imports {use.name}, which is not below it")
    return out


def one_door_each(root: Path) -> list[str]:
    """Devices, data sets, checkpoints, torch and flags are each named in one place."""
    out = []
    for file in python_files(root / "moco_jax"):
        for use in uses(file):
            doors = [(name, places) for name, places in DOORS.items() if _below(use.name, name)]
            if _below(use.name, "jax") and DEVICE_WORDS & set(use.name.split(".")):
                doors.append((use.name, ("parallel.py",)))
            for name, places in doors:
                if not file.path.startswith(places):
                    out.append(f"{file.path}:{use.line}: {name} belongs to {' or '.join(places) or 'no file'}")
    return sorted(set(out))


def slow_imports_are_lazy(root: Path) -> list[str]:
    """scikit-learn, matplotlib and torch are imported by the function that uses them."""
    return [
        f"{file.path}:{use.line}: import {use.name} inside the function that uses it"
        for file in python_files(root / "moco_jax")
        for use in uses(file)
        if use.imported and not use.lazy and _below(use.name, *LAZY)
    ]


def entries_are_light(root: Path) -> list[str]:
    """What runs before flags are parsed, config pages included, imports neither JAX nor anything that does."""
    out = []
    files = [f for f in python_files(root / "moco_jax") if f.path.startswith(LIGHT_FILES)]
    pages = [f._replace(path=f"configs/{f.path}") for f in python_files(root / "configs")]
    for file in files + pages:
        for use in uses(file):
            standard = use.name.split(".")[0] in sys.stdlib_module_names
            eager = not use.lazy or file in pages  # a page is a function that runs before JAX is imported
            if use.imported and eager and not standard and not _below(use.name, *LIGHT):
                out.append(f"{file.path}:{use.line}: {use.name} is too heavy to import here")
    return out


def files_run_no_code(root: Path) -> list[str]:
    """Checkpoints, images, tables and JSON are data: not unpickled, not evaluated, no name in them imported."""
    out = []
    for file in python_files(root / "moco_jax"):
        for use in uses(file):
            for name in (n for n in RUNS_CODE if _below(use.name, n)):
                allowed = RUNS_CODE[name].get(file.path, ())
                if use.name not in allowed and not (allowed and use.name == name):
                    out.append(f"{file.path}:{use.line}: {use.name} can run what a file says")
        for node in (n for n in ast.walk(file.tree) if isinstance(n, ast.Call)):
            called, given = _dotted(node.func), {k.arg: k.value for k in node.keywords}
            if called in RUNNERS:
                out.append(f"{file.path}:{node.lineno}: {called} can run what a file says")
            if called == "torch.load" and "weights_only" not in given:
                out.append(f"{file.path}:{node.lineno}: torch.load without weights_only=True")
            for name in SAFE.keys() & given.keys():
                value = given[name]
                if not (isinstance(value, ast.Constant) and value.value is SAFE[name]):
                    out.append(f"{file.path}:{node.lineno}: {name} must be {SAFE[name]}")
    return sorted(set(out))


def public_things_have_docstrings(root: Path) -> list[str]:
    """Modules, and their functions and classes without a leading underscore, say what they are."""
    out = []
    for file in python_files(root / "moco_jax"):
        defined = [n for n in file.tree.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)]
        out += [f"{file.path}: the module has no docstring"] * (
            bool(file.tree.body) and not ast.get_docstring(file.tree)
        )
        for node in defined:
            if not node.name.startswith("_") and not ast.get_docstring(node):
                out.append(f"{file.path}:{node.lineno}: {node.name} has no docstring")
    return out


def keys_come_first(root: Path) -> list[str]:
    """In core/ and what an operation does a random key is the first argument, optional arguments are keyword-only."""
    out = []
    for file in python_files(root / "moco_jax"):
        if not file.path.startswith(("core/", "views/augment.py", "views/geometry.py")):
            continue
        for node in ast.walk(file.tree):
            if not isinstance(node, ast.FunctionDef):
                continue
            positional = [a.arg for a in node.args.posonlyargs + node.args.args]
            if "key" in [*positional[1:], *(a.arg for a in node.args.kwonlyargs)]:
                out.append(f"{file.path}:{node.lineno}: {node.name} takes its random key first")
            if node.args.defaults:
                out.append(f"{file.path}:{node.lineno}: {node.name} takes optional arguments by keyword only")
    return out


def steps_look_alike(root: Path) -> list[str]:
    """Every mechanism has step(state, batch, data) and contrast(state, batch, data)."""
    out = []
    for file in python_files(root / "moco_jax" / "mechanisms"):
        functions = {n.name: n.args for n in ast.walk(file.tree) if isinstance(n, ast.FunctionDef)}
        for name in ("step", "contrast") if file.path != "__init__.py" else ():
            if name not in functions or ast.unparse(_bare(functions[name])) != "state, batch, data":
                out.append(f"mechanisms/{file.path}: there must be {name}(state, batch, data)")
    return out


def _bare(arguments: ast.arguments) -> ast.arguments:
    """The same without annotations."""
    for a in ast.walk(arguments):
        if isinstance(a, ast.arg):
            a.annotation = None
    return arguments


def no_machine_is_named(root: Path) -> list[str]:
    """No path of one machine; tests and benchmarks may look for a folder shared/ beside the repository."""
    out = []
    for folder, folders, names in os.walk(root):
        kept = [d for d in folders if not d.startswith(".") or d in (".ci", ".github")]
        folders[:] = [d for d in kept if d not in ("runs", "build", "dist", "scratch", "__pycache__")]
        for path in (Path(folder, n) for n in names if Path(n).suffix not in (".pyc", ".png", ".jpg", ".npz")):
            here = path.relative_to(root).as_posix()
            shared = "" if here.startswith(("tests/", "benchmarks/")) else r"|\.\./shared"
            for i, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
                if match := re.search(rf"(?<![\w.])/(?:work|root)/{shared}", line):
                    out.append(f"{here}:{i}: names {match[0]}, which is on one machine only")
    return out


RULES = (
    imports_go_down,
    one_door_each,
    slow_imports_are_lazy,
    entries_are_light,
    files_run_no_code,
    public_things_have_docstrings,
    keys_come_first,
    steps_look_alike,
    no_machine_is_named,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_project_keeps(rule):
    """The rule holds for what is here."""
    complaints = rule(ROOT)
    assert not complaints, "\n".join(complaints)


STEPS = "def step(state, batch, data): ...\ndef contrast(state, batch, data): ...\n"

# (rule, file, what it says, words of the one complaint; None where there is nothing to complain of)
EXAMPLES = [
    (imports_go_down, "core/a.py", "from moco_jax.models import resnet", "core imports moco_jax.models.resnet"),
    (imports_go_down, "core/a.py", "from moco_jax import parallel as p", "core imports moco_jax.parallel"),
    (imports_go_down, "views/a.py", "import moco_jax.data.order", "views imports moco_jax.data.order"),
    (imports_go_down, "views/a.py", "from ..data import order", "views imports moco_jax.data.order"),
    (imports_go_down, "mechanisms/a.py", "def f():\n    import moco_jax.views", "mechanisms imports moco_jax.views"),
    (imports_go_down, "loop.py", "from moco_jax import train", "loop imports moco_jax.train"),
    (
        imports_go_down,
        "reports/a.py",
        "def f():\n    from moco_jax import checkpoints",
        "reports imports moco_jax.checkpoints",
    ),
    (imports_go_down, "odd.py", "", "odd has no place in LAYERS"),
    (imports_go_down, "core/a.py", "from moco_jax import __version__, config\nfrom moco_jax.core import ema", None),
    (imports_go_down, "core/a.py", "from . import ema\nfrom .. import config", None),
    (imports_go_down, "__init__.py", "def f():\n    from moco_jax import pretrain", None),
    (one_door_each, "core/a.py", "import jax\njax.pmap(f)", "jax.pmap belongs to parallel.py"),
    (one_door_each, "loop.py", "from jax.sharding import Mesh", "jax.sharding.Mesh belongs to parallel.py"),
    (one_door_each, "loop.py", "from jax import sharding as s\ns.Mesh", "jax.sharding.Mesh belongs to parallel.py"),
    (one_door_each, "loop.py", "import jax as j\nn = len(j.devices())", "jax.devices belongs to parallel.py"),
    (one_door_each, "views/a.py", "import grain", "grain belongs to data/"),
    (one_door_each, "evaluation/a.py", "def f():\n    import tensorflow_datasets as t", "belongs to data/"),
    (one_door_each, "checkpoints/store.py", "import orbax.checkpoint as ocp", "orbax belongs to checkpoints/arrays.py"),
    (
        one_door_each,
        "models/a.py",
        "def f():\n    import safetensors.numpy",
        "belongs to checkpoints/safetensors_file.py",
    ),
    (one_door_each, "checkpoints/a.py", "def f():\n    import timm", "timm belongs to checkpoints/libraries.py"),
    (one_door_each, "checkpoints/a.py", "def f():\n    import transformers", "belongs to checkpoints/libraries.py"),
    (one_door_each, "models/a.py", "def f():\n    from torch import nn", "torch belongs to checkpoints/pytorch.py or"),
    (one_door_each, "checkpoints/a.py", "if TYPE_CHECKING:\n    from torch import Tensor", "torch belongs to"),
    (one_door_each, "checkpoints/pytorch.py", "def f():\n    import torch", None),
    (one_door_each, "data/a.py", "import tensorflow as tf", "tensorflow belongs to no file"),
    (one_door_each, "loop.py", "from absl import flags", "absl.flags belongs to cli/"),
    (one_door_each, "loop.py", "from moco_jax import parallel\nparallel.device_count()", None),
    (one_door_each, "parallel.py", "import jax\njax.pmap(jax.devices())", None),
    (one_door_each, "data/a.py", "import grain\nimport tensorflow_datasets as tfds", None),
    (slow_imports_are_lazy, "evaluation/a.py", "from sklearn import svm", "import sklearn.svm inside"),
    (slow_imports_are_lazy, "evaluation/a.py", "class A:\n    import matplotlib", "import matplotlib inside"),
    (slow_imports_are_lazy, "checkpoints/libraries.py", "import timm", "import timm inside"),
    (slow_imports_are_lazy, "evaluation/a.py", "def f():\n    import sklearn", None),
    (entries_are_light, "cli/a.py", "import jax", "jax is too heavy"),
    (entries_are_light, "reports/a.py", "import jax.numpy as jnp", "jax.numpy is too heavy"),
    (entries_are_light, "config.py", "from moco_jax.core import ema", "moco_jax.core.ema is too heavy"),
    (entries_are_light, "../configs/a.py", "def get_config():\n    import jax", "jax is too heavy"),
    (entries_are_light, "cli/a.py", "import os\nfrom moco_jax import config\ndef f():\n    import jax", None),
    (files_run_no_code, "data/a.py", "import pickle", "pickle can run what a file says"),
    (files_run_no_code, "data/a.py", "def f():\n    from yaml import load", "yaml.load can run what a file says"),
    (files_run_no_code, "checkpoints/pytorch.py", "import pickle\npickle.loads(b'')", "pickle.loads can run what"),
    (
        files_run_no_code,
        "checkpoints/detectron2.py",
        "from pickle import loads",
        "pickle.loads can run what a file says",
    ),
    (files_run_no_code, "checkpoints/detectron2.py", "import pickle\npickle.dumps(1)", None),
    (files_run_no_code, "data/a.py", "import runpy", "runpy can run what a file says"),
    (files_run_no_code, "data/a.py", "import importlib.util as u\nu.module_from_spec(s)", "module_from_spec can run"),
    (files_run_no_code, "data/a.py", "eval(text)", "eval can run what a file says"),
    (files_run_no_code, "data/a.py", "module = __import__(name)", "__import__ can run what a file says"),
    (files_run_no_code, "data/a.py", "model.eval()", None),
    (files_run_no_code, "data/a.py", "np.load(p, allow_pickle=True)", "allow_pickle must be False"),
    (files_run_no_code, "data/a.py", "np.load(p, allow_pickle=not safe)", "allow_pickle must be False"),
    (files_run_no_code, "data/a.py", "np.load(p, allow_pickle=False)", None),
    (files_run_no_code, "checkpoints/a.py", "torch.load(p)", "torch.load without weights_only=True"),
    (files_run_no_code, "checkpoints/a.py", "torch.load(p, weights_only=False)", "weights_only must be True"),
    (files_run_no_code, "checkpoints/a.py", "torch.load(p, weights_only=True)", None),
    (public_things_have_docstrings, "a.py", "'''A.'''\ndef f(): ...", "f has no docstring"),
    (public_things_have_docstrings, "a.py", "'''A.'''\nclass C: ...", "C has no docstring"),
    (public_things_have_docstrings, "a.py", "x = 1", "the module has no docstring"),
    (public_things_have_docstrings, "a.py", "'''A.'''\ndef _f(): ...", None),
    (keys_come_first, "core/a.py", "def f(x, key): ...", "f takes its random key first"),
    (keys_come_first, "views/augment.py", "def f(x, *, key): ...", "f takes its random key first"),
    (keys_come_first, "views/geometry.py", "def f(x, key): ...", "f takes its random key first"),
    (keys_come_first, "core/a.py", "def f(key, x=1): ...", "f takes optional arguments by keyword only"),
    (keys_come_first, "core/a.py", "def f(key, x, *, p=1): ...", None),
    (keys_come_first, "views/recipes.py", "def f(x, key): ...", None),
    (steps_look_alike, "mechanisms/a.py", STEPS.replace("batch, data", "data, batch", 1), "there must be step("),
    (steps_look_alike, "mechanisms/a.py", STEPS.replace("data)", "data, key)", 1), "there must be step("),
    (steps_look_alike, "mechanisms/a.py", STEPS.replace("contrast", "other"), "there must be contrast("),
    (steps_look_alike, "mechanisms/a.py", STEPS.replace("state,", "state: State,"), None),
    (no_machine_is_named, "../README.md", "see /wo" + "rk/main", "README.md:1: names /wo" + "rk/"),
    (no_machine_is_named, "../docs/a.md", "see ../shared", "docs/a.md:1: names ../shared"),
    (no_machine_is_named, "../tests/a.py", "'../shared'", None),
    (no_machine_is_named, "../.venv/a.py", "'/ro" + "ot/a'", None),
]


@pytest.mark.parametrize(("rule", "path", "text", "complaint"), EXAMPLES)
def test_a_breach_is_seen_and_nothing_else(tmp_path, rule, path, text, complaint):
    """Each rule complains of a small project that breaks it, once, and not of its neighbour that does not."""
    file = Path(os.path.normpath(tmp_path / "moco_jax" / path))
    for name in ("moco_jax/mechanisms/__init__.py", "configs/page.py", file):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    file.write_text(text)
    complaints = rule(tmp_path)
    assert len(complaints) == (complaint is not None), complaints
    assert complaint is None or complaint in complaints[0]


def test_every_rule_can_fail():
    """A rule that no example breaks is not a rule."""
    assert {rule for rule, _, _, complaint in EXAMPLES if complaint} == set(RULES)


def test_an_empty_folder_is_refused(tmp_path):
    """A rule that found no file would hold for ever."""
    with pytest.raises(AssertionError, match="no Python files"):
        imports_go_down(tmp_path)
