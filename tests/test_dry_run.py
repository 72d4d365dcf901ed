"""A dry run: its numbers are those of the run, and it leaves nothing behind."""

import dataclasses
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from moco_jax import assembly, checks, cli, config, costs, dry_run, parallel, pretrain, run_folder
from moco_jax.checkpoints.store import Store, describe
from moco_jax.data import pixels, replacing
from moco_jax.data.sources import ArraySource
from tests import tiny


def small(**changes):
    """16 images on eight devices, no labels, and a net without batch norm, which compiles in seconds."""
    c = tiny.config(
        data=config.Data(mean=(0.5,) * 3, std=(0.25,) * 3),
        views=config.Views("bands", tiny.SIZE),
        eval=config.Eval(every_epochs=0),
        leak=config.Leak(every_epochs=0),
        queue=config.Queue(None),
        shuffle=config.Shuffle(None),
    )
    return dataclasses.replace(c, **changes)


def objects(c):
    """A user's own encoder, images and recipe."""
    encoder = tiny.small_encoder(c, 3, batch_norm=False)
    return {"encoder": encoder, "source": ArraySource(tiny.images()), "recipe": tiny.LIGHT}


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """(plan, what it said, its folder's content) of a dry run from an empty folder into one that is not there."""
    folder = tmp_path_factory.mktemp("empty")
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HOME", str(folder))
        c = small()
        plan = dry_run.report(c, "runs/none", **objects(c), say=said.append)
    return plan, "\n".join(said), list(folder.rglob("*"))


def test_nothing_is_written(dry):
    """Not even the folder of the run, from which it would begin."""
    plan, said, left = dry
    assert left == []
    assert plan.first_step == 0 and "runs/none holds no checkpoint: the run would begin at step 0 of 20" in said


def test_parameters_are_the_real_count(dry):
    """A 3x3 convolution from 3 to 4 channels without bias, and a linear layer from 4 to 8 with one."""
    assert dry[0].parameters == {"backbone": 3 * 3 * 3 * 4, "head": 4 * 8 + 8}
    assert "108 in the backbone, 40 in the head" in dry[1]


def test_memory_holds_state_and_images(dry):
    """State: two networks, a momentum, queue rows and their steps, pointer, step; images: 64 of 10x10x3."""
    memory = dry[0].memory
    assert memory.state == 4 * (3 * 148 + 16 * 8 + 16 + 2)  # K: a quarter of 64 images
    assert memory.images == 64 * 10 * 10 * 3
    assert memory.workspace > 0 and memory.peak == sum(memory)


def test_time_is_measured_and_projected(dry):
    """Ten steps of the run's own, and hours for the steps that are left: five epochs of four."""
    plan = dry[0]
    assert plan.total_steps == 20 and plan.pace.steps == dry_run.STEPS and plan.pace.seconds > 0
    assert plan.hours == pytest.approx(20 * plan.pace.seconds / 3600) and 0 <= plan.pace.waiting < 1
    assert plan.compile_seconds > 0


def test_what_none_stands_for_is_said(dry):
    """The keys that were None or auto, and no other."""
    assert dry[0].resolved == {
        "queue.size": 16,
        "shuffle.block": 16,
        "data.channels": "3, as stored",
        "data.range": (0.0, 255.0),
        "train.microbatch_size": "2, all of a device at once",
        "eval.resize": 8,
    }
    assert "what None and auto stand for: queue.size = 16; shuffle.block = 16; data.channels = 3, as stored" in dry[1]


def planned(arguments, output, alias, temporary):
    """A compiled call of which the compiler plans that."""
    names = ("argument", "output", "alias", "temp")
    sizes = dict(zip(names, (arguments, output, alias, temporary), strict=True))
    plan = SimpleNamespace(**{f"{name}_size_in_bytes": size for name, size in sizes.items()})
    return SimpleNamespace(memory_analysis=lambda: plan)


@pytest.fixture
def report(monkeypatch):
    """A dry run of the small config, where compiling gives `call` and every step takes an hour: (plan, its lines)."""

    def run(workdir, call, **given):
        monkeypatch.setattr(costs, "compile_call", lambda *a: (call, 1.0))
        monkeypatch.setattr(costs, "flops_per_image", lambda *a: None)
        monkeypatch.setattr(dry_run, "measure", lambda *a: dry_run.Pace(3600.0, 0.5, 10))
        said = []
        return dry_run.report(small(), workdir, **objects(small()) | given, say=said.append), "\n".join(said)

    return run


def test_logits_that_are_much_of_the_memory_are_named(report, tmp_path):
    """2 queries a device against 16 keys: 128 bytes. Of 1,024 they are an eighth, of more not worth a word."""
    advice = (
        "logits of 2 queries and 16 keys take 128 B of it, several times over: queue.chunk=4 would never hold them all"
    )
    for peak, named in ((1024, True), (1032, False)):
        _, said = report(tmp_path / "none", planned(peak, 0, 0, 0))
        assert (advice in said) == named == ("queue.chunk" in said)


def test_what_a_backend_does_not_tell_is_not_known(report, tmp_path):
    """Nothing is made up; time is measured nevertheless, and slow loading is said."""
    plan, said = report(tmp_path / "none", SimpleNamespace(memory_analysis=lambda: None))
    assert plan.memory is None and plan.flops_per_image is None and plan.hours == 20
    assert "memory: not known" in said and "compute: not known per image" in said
    assert "50% of it waiting for images" in said and "images come too slowly, see data.workers" in said


def test_bad_files_that_it_meets_are_said(report, tmp_path, monkeypatch):
    """Those of the images that it looked at, by name."""

    class Damaged(ArraySource):
        def __getitem__(self, index):
            if index == 7:
                raise pixels.Unreadable("cut", "is cut")
            return super().__getitem__(index)

    monkeypatch.setattr(replacing.Replacing, "_check", lambda _: None)
    call = SimpleNamespace(memory_analysis=lambda: None)
    plan, said = report(tmp_path / "none", call, source=Damaged(tiny.images(), name="mine"))
    assert "warning: bad files: 1 of 64 images" in said and plan.warnings[-1].endswith("so far: record 7 (is cut)")


def test_the_peak_counts_a_donated_buffer_once(report, tmp_path, monkeypatch):
    """What goes in and out beside it and the workspace; a step that does not fit is not tried, and keys are named."""
    state, images = 4 * (3 * 148 + 16 * 8 + 16 + 2), 64 * 10 * 10 * 3
    call = planned(state + images + 100, state + 20, state, 5000)
    assert report(tmp_path / "none", call)[0].memory == (state, images, 100 + 20 + 5000)
    monkeypatch.setattr(parallel, "memory_stats", lambda: {"bytes_limit": state + images + 5119})
    plan, said = report(tmp_path / "none", call)
    assert plan.pace is None and plan.hours is None and "time: not measured" in said
    assert "warning: it has 26.7 kB: use a smaller batch_size, or train.microbatch_size" in said
    monkeypatch.setattr(parallel, "memory_stats", lambda: {"bytes_limit": state + images + 5120})
    assert report(tmp_path / "none", call)[0].hours == 20


@pytest.mark.parametrize(
    ("step", "words", "hours"),
    [(8, "would continue from step 8 of 20", 12), (20, "complete: all 20 steps are done", 0)],
)
def test_a_folder_with_a_run_is_told_from_an_empty_one(report, tmp_path, step, words, hours):
    """The step of its newest checkpoint, and hours for what is left; another run's folder is refused as by `train`."""
    parts = assembly.assemble(small(), **objects(small()))
    with Store(tmp_path / "checkpoints") as store:
        store.save(step, {"x": jnp.zeros(1)}, describe(config.to_json(parts.config), parts.objects))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    plan, said = report(tmp_path, SimpleNamespace(memory_analysis=lambda: None))
    assert plan.first_step == step and plan.hours == hours and words in said
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    other = parts._replace(config=dataclasses.replace(parts.config, seed=1))
    with pytest.raises(config.ConfigError, match="seed 0 -> 1"):
        run_folder.check(other, tmp_path)


def test_warnings_are_said(tmp_path):
    """Those that a run prints at its start."""
    c = small(queue=config.Queue(40))
    parts = assembly.assemble(c, **objects(c))
    assert parts.warnings == checks.check(parts.config, records=64, devices=8)
    lines = dry_run.about(parts, tmp_path, 0, 20, {}, {})
    assert [line for line in lines if line.startswith("warning: queue.size 40 is more than half")]


@pytest.mark.parametrize("flag", ["--dry_run", "--dry_run=true"])
def test_the_flag_is_a_switch(monkeypatch, flag):
    """With and without a value; nothing is trained."""
    seen = []
    monkeypatch.setattr(dry_run, "report", lambda c, workdir, say: seen.append((c.seed, workdir)))
    monkeypatch.setattr(pretrain, "train", lambda *a: pytest.fail("trained"))
    assert cli.main(["train", flag, "--config.seed=3", "--workdir=w"]) == 0
    assert seen == [(3, "w")]
