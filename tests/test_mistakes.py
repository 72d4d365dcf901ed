"""Mistakes explain themselves: one table of what a user may get wrong, through the program's own front door.

A row is a command line and what its answer has to name. Each is answered in at most two lines without a traceback,
before anything is compiled, and leaves every file as it was.
"""

import contextlib
import dataclasses
import hashlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks import runs
from moco_jax import assembly, cli, config, parallel, pretrain, stopping
from moco_jax.checkpoints.store import Store, exclusive, write_json
from moco_jax.cli import flags
from moco_jax.evaluation import neighbours
from tests.test_preemption import ended, until

LONGEST = 400  # characters of a line
ROOT = Path(__file__).parents[1]
SETTINGS = """
    --config.batch_size=16 --config.bn.group_size=4 --config.shuffle.block=8 --config.queue.size=32
    --config.views.size=8 --config.model.width=4 --config.model.dim=8 --config.train.epochs=2
    --config.eval.every_epochs=0 --config.data.dataset=None --config.data.split=train
"""
GRAY = f"{SETTINGS} --config.data.array=gray.npy"
# What rows write for short; a later flag overrides an earlier one. `run` is a run on gray.npy at step 4 of 8.
SHORT = {
    "NEW": f"train {GRAY} --workdir=new",
    "FILES": f"train {SETTINGS} --workdir=new",
    "RUN": f"train {GRAY} --workdir=run",
    "KNN": "knn --checkpoint=run --config.data.dataset=images --config.k=(5,)",
}

# command line | words that the answer names | exit status, 1 where none is given
MISTAKES = {
    "command": """
        trian | 'trian' 'train' | 2
        train digits | 'digits' --name=value
        train --workdri=x | 'workdri' 'workdir'
        train --workdir | --workdir
        train --workdir= | --workdir=
        train --dry_run=maybe | --dry_run 'maybe'
        train --config digits | --config=digits
        train --config=run/config.json | run/config.json .py
        compare run | REFERENCE.csv | 2
        convert run out | --format
        convert run out --format=tf | 'tf' timm
        convert run out.pth extra --format=pth | 'extra'
        convert run file --format=pth | file another name
    """,
    "config keys": """
        train --config.moco.temprature=3 | 'moco.temprature' 'moco.temperature'
        train --config.temperature=3 | 'temperature' 'moco.temperature'
        train --config.queue=3 | 'queue' 'queue.size'
        train --config=memory_bank_r50 --config.queue.size=3 | 'queue.size' memory_bank
        train --config.mechanism=memory_bank | mechanism --config 'memory_bank'
        knn --config.temprature=1 | 'temprature' 'temperature'
    """,
    "config types": """
        train --config.batch_size=1e3 | 'batch_size' whole '1e3'
        train --config.batch_size=None | 'batch_size' int
        train --config.batch_size | batch_size
        train --config.moco.temperature=warm | 'moco.temperature' number 'warm'
        train --config.moco.symmetric=maybe | 'moco.symmetric' true 'maybe'
        train --config.data.mean=(a,) | 'data.mean' float
        train --config.data.range=(0,1,2) | 'data.range' 2 3
        train --config.optimizer.milestones=(1.5,) | 'optimizer.milestones' int 1.5
        NEW --config.optimizer.schedule=cosinus | optimizer.schedule 'cosinus' 'cosine'
        NEW --config.model.arch=resnet19 | model.arch 'resnet19' 'resnet18'
        NEW --config.views.recipe=moco | views.recipe 'moco' 'moco_v
        NEW --config.eval.feature=neck | eval.feature 'neck' backbone
        train --config.seed=-1 | seed -1
        train --config.moco.momentum=1.5 | moco.momentum 0..1 1.5
        train --config.optimizer.learning_rate=nan | optimizer.learning_rate nan
        train --config.train.epochs=0 | train.epochs 0
        NEW --config.optimizer.milestones=(1,) | optimizer.milestones schedule cosine
        knn --checkpoint=run --config.features=('neck',) | features neck backbone
        eval-linear --checkpoint=run --config.epochs=50 | milestones epochs 50
        transfer --encoders=run --config.labels=(5,) | 'labels' texts 5
    """,
    "config pages": """
        train --config=digit | 'digit' 'digits'
        train --config=nowhere.py | 'nowhere.py'
        train --config=knn | training mechanism
        knn --config=digits | training 'knn'
        train --config=pages/syntax.py | pages/syntax.py line 1 SyntaxError
        train --config=pages/slip.py | pages/slip.py line 4 'sise' 'size'
        train --config=pages/section.py | pages/section.py line 4 'queu' 'queue'
        train --config=pages/kind.py | pages/kind.py line 4 'size' many
        train --config=pages/raises.py | pages/raises.py line 2 ZeroDivisionError
        train --config=pages/imports.py | pages/imports.py line 1 no_such_module
        train --config=pages/above.py | pages/slip.py line 4 'sise'
        train --config=pages/nothing.py | pages/nothing.py get_config
        train --config=pages/number.py | pages/number.py get_config page()
        train --config=gray.npy | gray.npy SyntaxError
    """,
    "paths": """
        FILES | data.folder data.array
        FILES --config.data.folder=images --config.data.array=gray.npy | data.folder data.array None
        FILES --config.data.folder=nowhere | data.folder 'nowhere'
        FILES --config.data.folder=file | file folder
        FILES --config.data.folder=empty | empty images .png
        FILES --config.data.folder=images --config.data.split=val | 'val' train test
        FILES --config.data.array=nowhere.npy | data.array 'nowhere.npy'
        FILES --config.data.array=images | images directory
        FILES --config.data.array=file | file .npy
        FILES --config.data.array=cut.npy | cut.npy
        FILES --config.data.manifest=lacks.csv | lacks.csv images/train/a/none.png
        FILES --config.data.manifest=columns.csv | columns.csv 'path'
        train --workdir=new --config.data.dataset=cifer10 | 'cifer10' prepare
        train --workdir=new --config.data.dataset=cifar10 --config.data.data_dir=empty | 'cifar10' prepare empty
        NEW --config.eval.every_epochs=1 --config.eval.data=nowhere | 'nowhere' eval.every_epochs=0
        NEW --config.train.init_from=nowhere | train.init_from nowhere
        NEW --config.train.init_from=empty | train.init_from empty
        NEW --config.train.init_from=begun | train.init_from begun checkpoint
        NEW --workdir=file | file --workdir
        NEW --workdir=file/run | file/run --workdir
        FILES --config.data.folder=images --workdir=images/run | --workdir=images/run data.folder outside
        features run --split=train --output=nowhere/f.npz | nowhere
        inspect nowhere | nowhere
    """,
    "shapes": """
        NEW --config.data.array=flat.npy | flat.npy (12,) (N, H, W
        NEW --config.data.array=few.npy | batch_size 16 8
        NEW --config.batch_size=128 | batch_size 128 64
        NEW --config.views.size=0 | views.size 0
        NEW --config.views.size=224 | views.size 224 eval.resize 16
        NEW --config.eval.resize=4 | eval.resize 4 views.size 8
        NEW --config.data.channels=3 | data.channels 3 1
        FILES --config.data.folder=images --config.data.channels=2 | data.channels 2
        NEW --config.views.recipe=moco_v2 | 'moco_v2' 3 xray
        NEW --config.views.recipe=supervised | views.recipe one view
        NEW --config.data.pairs=same_group | data.pairs groups
        NEW --config.bn.group_size=3 | bn.group_size 3 batch_size 24
        NEW --config.bn.group_size=32 | bn.group_size 32 batch_size 16 bn.group_size 2
        NEW --config.shuffle.block=6 | shuffle.block 6 16
        NEW --config.queue.size=8 | queue.size 8 16
        NEW --config.train.microbatch_size=3 | train.microbatch_size 3
        knn --checkpoint=run --config.data.dataset=images --config.k=(65,) | k 65 64
        knn --checkpoint=run --config.data.dataset=gray.npy | gray.npy labels --config.data.dataset
    """,
    "dtype and values": """
        NEW --config.data.array=float.npy | float32 data.range
        NEW --config.data.array=sixteen.npy | uint16 data.range
        NEW --config.data.array=double.npy | double.npy float64 float32
        NEW --config.data.array=nan.npy --config.data.range=(0.0,1.0) | nan.npy 5 finite
        NEW --config.data.range=(1.0,0.0) | data.range rise
        NEW --config.data.mean=(0.5,0.5,0.5) | data.mean 3 1
        NEW --config.data.std=(0.5,0.5) | data.std 2 1
        NEW --config.data.std=(0.0,) | data.std 0
        NEW --config.model.dtype=float16 | model.dtype 'float16' 'bfloat16'
        NEW --config.model.dtype=float64 | model.dtype JAX_ENABLE_X64
    """,
    "encoder against checkpoint": """
        NEW --config.train.init_from=run --config.model.width=8 | train.init_from width 4 8 --config.model.width=4
        NEW --config.train.init_from=run --config.model.arch=resnet18 | train.init_from --config.model.arch=resnet_tiny
        NEW --config.train.init_from=run --config.model.dim=16 | train.init_from dim 8 16 init_head
        NEW --config.data.array=colour.npy --config.train.init_from=run | data.mean 1 3
        FILES --config.data.array=colour.npy --config.data.mean=(.5,.5,.5) --config.data.std=(.2,.2,.2) \
            --config.train.init_from=run | train.init_from channels 1 3
        RUN --config.model.width=8 | run model.width 4 8
        RUN --config.model.arch=resnet18 | run model.arch 'resnet18'
        knn --checkpoint=run --config.data.dataset=colours | colours 3 1
        convert run out --format=detectron2 | 'cifar' model.stem
    """,
    "queue changed on resume": """
        RUN --config.queue.size=64 | run queue.size 32 64 --workdir
        RUN --config.queue.size=None | run queue.size 32 16 --workdir
        RUN --config.queue.mask_same_image=true | run queue.mask_same_image True --workdir
    """,
    "another run's workdir": """
        RUN --config.seed=1 | run seed 0 1 --workdir
        RUN --config.views.recipe=xray | run views.recipe 'digits' 'xray' --workdir
        RUN --config.data.array=other.npy | run 64 images --workdir
        RUN --config.data.array=None --config.data.folder=images | run 64 images --workdir
        RUN --config.train.init_from=other | run train.init_from random --workdir
        RUN --workdir=begun --config.seed=1 | begun seed 0 1 delete
        train --config=memory_bank_r50 --workdir=run --config.data.dataset=None --config.data.array=gray.npy \
            --config.data.split=train --config.data.channels=None --config.data.path=resident \
            --config.views.recipe=digits --config.data.mean=(0.5,) --config.data.std=(0.5,) --config.batch_size=16 \
            --config.bn.group_size=4 --config.memory_bank.size=20 --config.eval.every_epochs=0 \
            | run mechanism 'moco' 'memory_bank' --workdir
        KNN --workdir=other | --workdir=other
    """,
    "epochs extended under cosine": """
        RUN --config.train.epochs=4 | run train.epochs 2 4 schedule train.init_from
        RUN --config.train.epochs=1 | run train.epochs 2 1
    """,
    "evaluating an empty workdir": """
        eval-linear --checkpoint=empty | empty run's
        eval-linear --checkpoint=nowhere | nowhere run's
        eval-linear --checkpoint=begun | begun checkpoint
        eval-linear --checkpoint=hollow | hollow checkpoint
        knn --checkpoint=empty | empty run's
        finetune --checkpoint=begun | begun checkpoint
        transfer --encoders=begun | begun checkpoint
        features begun --split=train --output=f.npz | begun checkpoint
        convert begun out --format=pth | begun checkpoint
        convert empty out --format=pth | empty run's
        report empty | empty config.json
        report begun | begun/log.jsonl
        compare empty gray.npy | gray.npy | 2
    """,
    "damaged by hand": """
        RUN --workdir=edited | edited/config.json damaged delete
        RUN --workdir=poor | poor/config.json another
        KNN --workdir=half | half/result.json damaged delete
        KNN --workdir=text | text/result.json damaged delete
    """,
    "numbers of devices and processes": """
        NEW --config.batch_size=20 | batch_size 20 8 devices 32
        NEW --config.batch_size=48 --config.bn.group_size=4 | batch_size 48 8 devices bn.group_size 4
        NEW --config.train.steps_per_call=2 | train.steps_per_call 2
        JAX_NUM_PROCESSES=2 NEW | JAX_NUM_PROCESSES JAX_COORDINATOR_ADDRESS JAX_PROCESS_ID
        JAX_NUM_PROCESSES=two JAX_PROCESS_ID=0 JAX_COORDINATOR_ADDRESS=localhost:1 NEW | JAX_NUM_PROCESSES=two
        JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=2 JAX_COORDINATOR_ADDRESS=localhost:1 NEW | JAX_PROCESS_ID=2
        JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1 JAX_COORDINATOR_ADDRESS=localhost NEW | JAX_COORDINATOR_ADDRESS PORT
        JAX_NUM_CPU_DEVICES=none NEW | JAX_NUM_CPU_DEVICES 'none'
    """,
}
ROWS = [
    pytest.param(command, named, int((*status, "1")[0]), id=f"{kind}: {command}")
    for kind, rows in MISTAKES.items()
    for command, named, *status in ([part.strip() for part in row.split(" | ")] for row in rows.strip().splitlines())
]
PAGES = {
    "syntax": "def get_config(:\n    pass\n",
    "slip": "    c.queue.sise = 3",
    "section": "    c.queu.size = 3",
    "kind": "    c.queue.size = 'many'",
    "raises": "def get_config():\n    return 1 / 0\n",
    "imports": "import no_such_module\n",
    "above": "from moco_jax.pages import load\n\ndef get_config():\n    return load('pages/slip.py')\n",
    "nothing": "config = 3\n",
    "number": "def get_config():\n    return 3\n",
}
EDIT = "from moco_jax.config import page\ndef get_config():\n    c = page()\n{}\n    return c\n"


def expanded(command):
    """The environment and the arguments of a row."""
    environment, words = {}, command.split()
    while re.fullmatch(r"JAX_\w+=.*", words[0]):
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    return environment, [word for first in words for word in shlex.split(SHORT.get(first, first))]


def write_images(place):
    """Arrays, folders and manifests, right ones and wrong ones."""
    rng = np.random.default_rng(0)
    gray = rng.integers(0, 256, (64, 12, 12, 1)).astype(np.uint8)
    unit = (gray / 255).astype(np.float32)
    holed = unit.copy()
    holed[5, 0, 0] = np.nan
    arrays = {"gray": gray, "other": gray[:, :10], "colour": np.repeat(gray, 3, -1), "few": gray[:8], "float": unit}
    arrays |= {"nan": holed, "double": gray / 255, "sixteen": gray.astype(np.uint16), "flat": gray[0, :, 0, 0]}
    for name, array in arrays.items():
        np.save(place / f"{name}.npy", array)
    (place / "cut.npy").write_bytes((place / "gray.npy").read_bytes()[:-5])
    for folder, mode in (("images", "L"), ("colours", "RGB")):
        for part, count in (("train", 32), ("test", 4)):
            for label in "ab":
                (place / folder / part / label).mkdir(parents=True)
                for i in range(count):
                    image = Image.fromarray(rng.integers(0, 256, (12, 12)).astype(np.uint8)).convert(mode)
                    image.save(place / folder / part / label / f"{i}.png")
    (place / "lacks.csv").write_text("path,label\nimages/train/a/0.png,a\nimages/train/a/none.png,a\n")
    (place / "columns.csv").write_text("file,label\nimages/train/a/0.png,a\n")


def write_run(folder, *, step=None):
    """The folder of a run on gray.npy as `train` leaves it, with a checkpoint at `step`; all weights are ones."""
    page, _ = flags.parse(shlex.split(GRAY), page="digits", named={}, usage="")
    parts = assembly.assemble(config.read(page))
    about = pretrain.about_of(parts)
    folder.mkdir()
    write_json(folder / "config.json", about)
    if step is not None:
        state = jax.tree.map(lambda a: np.ones(a.shape, a.dtype), jax.eval_shape(parts.mechanism.init))
        with Store(folder / "checkpoints") as store:
            store.save(step, parallel.put_data(dataclasses.replace(state, step=np.asarray(step, np.int32))), about)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with everything that the rows name."""
    place = tmp_path_factory.mktemp("place")
    with contextlib.chdir(place):
        write_images(place)
        for name in ("empty", "hollow/checkpoints", "pages", "half", "text"):
            (place / name).mkdir(parents=True)
        (place / "file").write_text("neither a run nor weights\n")
        for name, text in PAGES.items():
            (place / f"pages/{name}.py").write_text(EDIT.format(text) if text.startswith(" ") else text)
        write_run(place / "run", step=4)
        write_run(place / "other", step=4)
        write_run(place / "begun")
        for name, content in (("edited", "no JSON"), ("poor", '{"config": {"seed": 0}}')):
            (place / name).mkdir()
            (place / name / "config.json").write_text(content)
        (place / "half/result.json").write_text('{"format": 1}')
        (place / "text/result.json").write_text("text")
    return place


def contents(place):
    """{path: digest of the file} of everything in a folder; folders have none."""
    paths = sorted(place.rglob("*"))
    return {str(p.relative_to(place)): hashlib.sha256(p.read_bytes()).digest() if p.is_file() else None for p in paths}


@pytest.fixture
def answer(place, monkeypatch, capsys):
    """(argv) -> (exit status, what stderr says), in `place`, of which not a byte may change; nobody trains."""
    monkeypatch.chdir(place)
    monkeypatch.setattr(pretrain, "_train", lambda *_, **__: pytest.fail("the mistake is trained on"))
    compiled = []

    def heard(name, duration, **about):
        if "backend_compile" in name:
            compiled.append(about.get("fun_name", name))

    def run(argv):
        before = contents(place)
        capsys.readouterr()
        compiled.clear()
        status = cli.main(argv)
        assert contents(place) == before
        # An evaluation opens its encoder first: as it began, and a copy of what is stored.
        assert len(compiled) <= (0 if argv[0] in ("train", "convert") else 2), compiled
        return status, capsys.readouterr().err

    jax.monitoring.register_event_duration_secs_listener(heard)
    yield run
    jax.monitoring.unregister_event_duration_listener(heard)


def check(error, named):
    """At most two lines, the first of which begins with what it is, and every word is there."""
    lines = error.splitlines()
    assert 1 <= len(lines) <= 2 and lines[0].startswith("error: ") and "Traceback" not in error, error
    assert max(map(len, lines)) <= LONGEST, f"{max(map(len, lines))} characters: {error}"
    assert [word for word in named.split() if word not in error] == [], error


@pytest.mark.parametrize(("command", "named", "status"), ROWS)
def test_a_mistake_is_named_and_leaves_nothing(command, named, status, answer, monkeypatch):
    """Two lines at most, the thing to change by its name, the documented status; no file is made or touched."""
    environment, argv = expanded(command)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found, error = answer(argv)
    assert found == status
    check(error, named)


@pytest.mark.parametrize(("command", "folder"), [("RUN", "run"), ("KNN --workdir=empty", "empty")])
def test_two_at_once_in_one_folder(command, folder, place, answer):
    """Whoever comes second is told so; the lock file is all that there is of it."""
    with exclusive(place / folder):
        found, error = answer(expanded(command)[1])
    assert found == 1
    check(error, f"another process {folder} workdir")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(place, answer):
    """Of train itself, and of an evaluation's result."""
    (place / "empty").chmod(0o555)
    try:
        for command in ("RUN --workdir=empty", "RUN --workdir=empty/run", "KNN --workdir=empty/knn"):
            found, error = answer(expanded(command)[1])
            assert found == 1
            check(error, "empty denied --workdir" if "RUN" in command else "empty denied")
    finally:
        (place / "empty").chmod(0o755)


def test_a_result_that_lacks_its_numbers(place, answer, monkeypatch):
    """Edited by hand: what it is of is right, and nothing else is there."""
    monkeypatch.setattr(neighbours, "_measured", lambda *_: {})
    _, argv = expanded("KNN --workdir=bare")
    cli.main(argv)
    found, error = answer(argv)
    assert found == 1
    check(error, "bare/result.json damaged delete --workdir")


@pytest.mark.long
def test_two_runs_at_once_and_one_after_kill_9(tmp_path):
    """The second of two is refused while the first goes on; once the first is killed nobody is in the way."""

    def start():
        return runs.start(tmp_path, {"train.epochs": 500})[0]

    first = start()
    until(first, "step 6/")
    status, out = ended(start())
    assert status == 1 and first.poll() is None
    check("".join(line for line in out.splitlines(True) if line.startswith("error: ")), f"another process {tmp_path}")
    assert "Traceback" not in out
    first.send_signal(signal.SIGKILL)
    assert ended(first)[0] == -signal.SIGKILL
    again = start()
    until(again, "/2000")  # steps: it trains, and answers
    again.send_signal(signal.SIGTERM)
    assert ended(again)[0] == 143


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "environment", "status", "named"),
    [
        ("train.py --workdir={}/run --config.data.split=train[:9]", {}, 1, "batch_size 128 9"),
        ("train.py --workdir={}/run", {"JAX_PLATFORMS": "cuda"}, 1, "JAX_PLATFORMS='cuda' cpu"),
        ("train.py --workdir={}/run", {"JAX_PLATFORMS": "gpus"}, 1, "JAX_PLATFORMS='gpus' cpu"),
        ("eval_linear.py --checkpoint={}", {}, 1, "{} run's"),
        ("-m moco_jax trian", {}, 2, "'trian' 'train'"),
        ("-m moco_jax compare {}", {}, 2, "REFERENCE.csv"),
        ("-m moco_jax train --help", {}, 0, None),
    ],
)
def test_programs_end_as_the_table_says(command, environment, status, named, tmp_path):
    """Each as a process of its own: the status, the error alone on stderr but for what libraries log, nothing left."""
    words = [word.format(tmp_path) for word in command.split()]
    changed = os.environ | {"JAX_PLATFORMS": "cpu"} | environment
    ran = subprocess.run(
        [sys.executable, *words], cwd=ROOT, env=changed, capture_output=True, text=True, check=False, timeout=300
    )
    assert ran.returncode == status and "Traceback" not in ran.stderr and not any(tmp_path.iterdir()), ran.stderr
    if named is not None:
        errors = ran.stderr[ran.stderr.index("error: ") :]
        check(errors, named.format(tmp_path))


def raises(error):
    def command(_):
        raise error

    return command


STATUSES = {  # status: what ends with it, in this process
    0: lambda: cli.main(["--version"]),
    1: lambda: cli.main(["train", "--config.sed=1"]),
    2: lambda: cli.main(["trian"]),
    130: lambda: flags.run(raises(KeyboardInterrupt()), []),
    141: lambda: flags.run(raises(BrokenPipeError()), []),
    143: lambda: terminated(),
}
ELSEWHERE = {134}  # JAX's own, for a peer that died: tests/test_preemption.py


def terminated():
    """The status of a program that stopped for SIGTERM."""
    with pytest.raises(SystemExit) as stop, stopping.ending():
        raise stopping.Stopped(signal.SIGTERM)
    return stop.value.code


def test_every_exit_status_that_is_documented_is_met(capsys):
    """And no other one is: the table of docs/reliability.md, row by row."""
    text = (ROOT / "docs" / "reliability.md").read_text().split("## Exit status")[1].split("\n## ")[0]
    documented = {int(number) for number in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    assert documented == STATUSES.keys() | ELSEWHERE
    assert {status: ends() for status, ends in STATUSES.items()} == {status: status for status in STATUSES}
    assert all(str(status) in cli.STATUS for status in (0, 1, 2, 130, 143))
