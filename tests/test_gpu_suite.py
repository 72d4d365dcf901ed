"""The suite for a GPU runs whole on a CPU, shrunken; what it reads from a compiled program; its table."""

import dataclasses
import json
import os
import re
import subprocess
import sys
import threading
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import gpu_suite, output
from benchmarks.gpu import alone, correct, hlo, pages, program, table, xla_flags
from moco_jax import parallel
from moco_jax.config import ConfigError

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_it_runs_whole_on_a_cpu(tmp_path):
    """Every section, in a process of its own with one device: nothing fails, the step is right, the JSON holds all."""
    out = tmp_path / "suite.json"
    command = [sys.executable, "-m", "benchmarks.gpu_suite", "--sizes=shrunken", f"--output={out}", "--seconds=100000"]
    quick = f"{os.environ['XLA_FLAGS']} --xla_backend_optimization_level=0"  # much is compiled, and little run
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": quick}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert set(gpu_suite.SECTIONS) <= set(found) and found["not_measured"] == []
    correct = found["correct"]
    assert correct["all_hold"] and correct["differ between two runs"] == []
    against = correct["against the CPU"]
    assert against["float32"]["gradients"] < 1e-5 < against["bfloat16"]["gradients"] < 0.3
    steps = found["steps"]
    assert {"batch 8", "batch 16", "fit", "program"} == set(steps)
    assert steps["batch 8"]["images_per_second"] > 0
    numbers = ("images_per_second", "step_milliseconds", "compile_seconds", "augmentation_share", "flops_per_image")
    numbers += ("bytes_per_image", "planned_bytes_per_device")
    assert all(steps["batch 16"][n] > 0 for n in numbers), steps["batch 16"]
    assert steps["program"]["mb_per_image_by_part"]["backward"] > 0
    assert found["demo"]["an epoch per dispatch"]["steps_per_call"] == 2
    assert found["parts"]["SGD and the target's average"]["milliseconds"] > 0
    assert found["parts"]["loss"]["256"]["all"]["seconds"] > 0
    assert len(found["profile"]["ten"]) == 10
    assert 0 < found["compiling"]["seconds from the cache"] < found["compiling"]["seconds, with others at once"]
    beside = found["beside_pytorch"]
    if find_spec("torch") is None:
        assert beside == {"not measured": "torch is not installed"}
    else:
        assert beside["ResNet-50, ours over PyTorch's fastest"] > 0
    for line in ("correct: yes", "shrunken: no figure means anything", "loss at K = 256", "compiling, seconds from"):
        assert line in done.stdout


def sections(monkeypatch, **made):
    """Sections in the place of the suite's, and nothing to compile."""
    monkeypatch.setattr(gpu_suite, "SECTIONS", made)
    monkeypatch.setattr(gpu_suite, "compile_all", lambda run, pool, names: None)
    monkeypatch.setattr(parallel, "device_count", lambda: 1)


def test_what_fails_or_comes_too_late_is_named(monkeypatch):
    """What a section found before it failed stays, the next is measured, and after the last second none begins."""

    def fails(run):
        yield "first", 1
        raise ValueError("no such kernel")

    def works(run):
        yield "x", 1

    sections(monkeypatch, a=fails, b=works)
    kept = []
    found = gpu_suite.measure(
        "shrunken", seconds=100, names=["a", "b"], keep=lambda found: kept.append(json.dumps(found))
    )
    assert found["a"] == {"first": 1, "failed": "ValueError: no such kernel"} and found["b"] == {"x": 1}
    assert '"first": 1' in kept[1] and '"b": {' not in kept[1] and '"b": {' in kept[-1]
    left = [json.loads(text)["not_measured"] for text in kept]
    assert left[0] == ["a", "b"] and left[-1] == [] and ["b"] in left  # whenever it is stopped
    said = []
    late = gpu_suite.measure("shrunken", seconds=-1, names=["a", "b"], say=said.append)
    assert said[1:] == [f"{name}: left out, as --seconds=-1 have passed" for name in "ab"]
    assert late["not_measured"] == ["a", "b"] and "b" not in late
    assert "not measured: a, b; on their own: --sections=a,b --output=" in table.of(late)
    assert "not measured: a, b (begun: not whole); on" in table.of(late | {"b": {"x": 1}})
    assert "a FAILED: ValueError" in table.of(found)


def test_it_is_heard_of(monkeypatch):
    """What it runs on at once, then each section as it ends: a run of minutes does not look hung."""

    def fails(run):
        yield "first", 1
        raise ValueError("no such kernel")

    sections(monkeypatch, a=lambda run: iter([("x", 1)]), b=fails)
    said = []
    gpu_suite.measure("shrunken", seconds=100, names=["a", "b"], say=said.append)
    assert "cpu" in said[0] and said[0].endswith("a, b")
    assert said[1:] == ["a: done (0 s)", "b: ValueError: no such kernel (0 s)"]


def test_what_was_measured_is_not_written_over(monkeypatch, tmp_path, capsys):
    """A file with figures in it is left as it is, before anything is measured."""
    kept = tmp_path / "suite.json"
    kept.write_text("{}")
    monkeypatch.setattr(sys, "argv", ["gpu_suite", "--sizes=shrunken", f"--output={kept}"])
    assert gpu_suite.main() == 2
    assert "is there already, with figures in it: name another file" in capsys.readouterr().err
    assert kept.read_text() == "{}"


def test_the_status_says_whether_all_is_well(monkeypatch, capsys):
    """0 only where every section was reached and ended, and the step is right."""

    monkeypatch.setattr(os, "environ", dict(os.environ))

    def status(**found):
        monkeypatch.setattr(gpu_suite, "measure", lambda *a, **k: found)
        monkeypatch.setattr(table, "of", str)
        monkeypatch.setattr(sys, "argv", ["gpu_suite", "--sizes=shrunken", "--sections=correct,demo"])
        return gpu_suite.main()

    assert status(correct={"all_hold": True}, demo={}) == 0
    assert status(correct={"all_hold": False}, demo={}) == 1
    assert status(correct={"all_hold": True}) == 1 and status(correct={"failed": "why"}, demo={}) == 1
    assert status(correct={"all_hold": True}, demo={"failed": "why"}) == 1
    capsys.readouterr()


def test_nothing_is_timed_while_programs_compile(monkeypatch):
    """XLA tries kernels on the card meanwhile. Correctness, which is not timed, does not wait."""
    seen = []

    def look(run):
        yield "done", run.programs["slow"].done()

    sections(monkeypatch, correct=look, steps=look)
    free = threading.Event()
    monkeypatch.setattr(
        gpu_suite, "compile_all", lambda run, pool, names: run.programs.update(slow=pool.submit(free.wait, 10))
    )

    def keep(found):
        seen.append(found.get("correct", {}).get("done"))
        if "correct" in found:
            free.set()

    found = gpu_suite.measure("shrunken", seconds=100, names=["correct", "steps"], keep=keep)
    assert found["correct"] == {"done": False} and found["steps"] == {"done": True} and seen


def test_several_cards_are_refused(monkeypatch):
    """Their sum would be held against what one can do."""
    monkeypatch.setattr(parallel, "device_count", lambda: 8)
    with pytest.raises(ConfigError, match="this is of one card; set CUDA_VISIBLE_DEVICES=0"):
        gpu_suite.measure("shrunken", seconds=1, names=["correct"])


def test_a_card_is_not_looked_for_on_a_cpu(monkeypatch):
    """As where JAX was installed without its plugin: full sizes would take hours, and say nothing of a card."""
    monkeypatch.setattr(parallel, "device_count", lambda: 1)
    for sizes in ("full", "short"):
        with pytest.raises(ConfigError, match=r"no GPU, but .*: install jax.cuda12. or .* --sizes=shrunken"):
            gpu_suite.measure(sizes, seconds=1, names=["correct"])


def test_batch_norm_alone_reads_and_writes_what_a_step_does():
    """Maps and their gradient come in and go out: no less than eight times the maps."""
    both, start = alone.norm_and_back((32, 8, 8, 16))
    moved = sum(k.bytes for k in hlo.kernels(both.lower(start).compile().as_text()))
    assert moved >= 8 * start[0].nbytes
    y, dx, *_ = both(start)
    assert y.shape == dx.shape == start[0].shape and float(jnp.abs(dx).max()) > 0


def test_every_byte_of_a_program_is_counted_once():
    """A product, a fusion that reads two arrays and writes one, and a loop of five turns."""

    def f(a, b):
        return jax.lax.fori_loop(0, 5, lambda i, x: jnp.sin(x + b) * i, a) @ b

    shape = jax.ShapeDtypeStruct((64, 64), jnp.float32)
    kernels = hlo.kernels(jax.jit(f).lower(shape, shape).compile().as_text())
    array = 64 * 64 * 4
    in_loop = [k for k in kernels if k.times == 5 and k.bytes >= 5 * 2 * array]
    assert sum(k.bytes for k in in_loop) == pytest.approx(5 * 3 * array, rel=0.01)  # b, x, and the next x
    (dot,) = [k for k in kernels if k.times == 1 and "dot_general" in k.of]
    assert dot.bytes == 3 * array
    assert all(k.operation not in hlo.FREE for k in kernels)


def test_sizes_of_types():
    """Arrays, scalars, tuples; a token has none."""
    assert hlo.size("bf16[256,56,56,64]{3,2,1,0}") == 2 * 256 * 56 * 56 * 64
    assert hlo.size("(f32[2,3]{1,0}, s32[], /*index=2*/pred[7]{0}, token[])") == 24 + 4 + 7
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.kernels("module @jit_f {}")


def test_parts_of_a_step_are_told_apart():
    """By the names of flax and JAX: gradients, queries, keys, views, and the rest."""
    names = {
        "jit(f)/transpose(jvp(Network))/backbone/bn1/mul": "backward",
        "jit(f)/jvp(Network)/backbone/conv1/conv": "query forward",
        "jit(f)/Network/backbone/conv1/conv": "key forward",
        "jit(f)/jvp(vmap())/while/add": "views",
        "jit(f)/dot_general": "rest",
    }
    found = hlo.by_part([hlo.Kernel("k", "fusion", 2**i, 1, name) for i, name in enumerate(names)])
    assert found == {part: 2**i for i, part in enumerate(names.values())}


def test_float32_activations_are_found():
    """A kernel of the backbone that writes float32 maps of every image, in groups or not.

    Statistics, bfloat16 maps, weights and partial sums over pixels are none.
    """
    line = '  %fusion.{} = {} fusion(%x), kind=kLoop, calls=%f, metadata={{op_name="jit(s)/Network/backbone/relu"}}'
    maps = ["8,56,56,64", "2,4,3136,64", "25088,64", "2,4,56,56,64", "56,56,8,64"]
    others = ["bf16[8,56,56,64]", "f32[4,64,64]", "f32[2,4,64,64]", "f32[64]", "f32[64,9,4096]"]
    entry = ["ENTRY %main (x: bf16[8,56,56,64]) -> f32[8] {", "  %x = bf16[8,56,56,64]{3,2,1,0} parameter(0)"]
    entry.append("  %w = f32[9,64,4096]{2,1,0} parameter(1)")  # a weight, whose gradient is of its shape
    kinds = [f"(f32[{shape}], f32[64])" for shape in maps] + others
    text = "\n".join([*entry, *(line.format(i, kind) for i, kind in enumerate(kinds)), "}"])
    assert program.wide_activations(text, 8) == [f"fusion.{i} f32[{shape}]" for i, shape in enumerate(maps)]


def test_an_operand_that_is_read_twice_counts_once():
    """And a copy what it copies, there and back; what no size is known of is an error."""
    lines = [
        "ENTRY %main (x: f32[8]) -> f32[8] {",
        "  %x = f32[8]{0} parameter(0)",
        "  %m = f32[8]{0} multiply(%x, %x)",
    ]
    lines += ["  %c = (f32[8]{0}, f32[8]{0}, u32[]) copy-start(%m)", "  %d = f32[8]{0} copy-done(%c)", "}"]
    assert [k.bytes for k in hlo.kernels("\n".join(lines))] == [64, 64]
    with pytest.raises(ValueError, match="holds c64, of which it is not known"):
        hlo.size("c64[8]{0}")


def test_a_step_that_is_not_right_is_said_to_be_so(monkeypatch):
    """A leaf in another bit, gradients or keys beyond a bound, of float32 or bfloat16: not all holds."""
    monkeypatch.setattr(correct, "_start", lambda c, cpu: None)
    leaf = np.arange(1.0, 5.0, dtype=np.float32)

    def stepper(spoilt):
        def of(c, device, *, loop=True, options=None):
            kind = "cpu" if not loop else "chunked" if options else "here"
            off = spoilt.get((kind, c.model.dtype), 0.0) + (0.01 if c.model.dtype == "bfloat16" else 0.0)

            def steps(start, count, per_call):
                moved = leaf * (1 + off) + (1e-6 if per_call == 4 and "bits" in spoilt else 0)
                network = SimpleNamespace(batch_stats={"m": leaf})
                keys = leaf * (1 + spoilt.get((kind, c.model.dtype, "keys"), 0.0) + (off > 0) * 0.01)
                memory = SimpleNamespace(queue=keys[:, None], written=np.zeros(4, np.int32))
                return tree(optimizer=moved, online=network, memory=memory), [1.0] * count

            return steps

        return of

    @jax.tree_util.register_dataclass
    @dataclasses.dataclass
    class tree:
        optimizer: object
        online: object = dataclasses.field(metadata={"static": True})
        memory: object = dataclasses.field(metadata={"static": True})

    def found(**spoilt):
        monkeypatch.setattr(correct, "_stepper", stepper(spoilt.pop("spoilt", {}) | spoilt))
        return correct.check(pages.SHRUNKEN)

    assert found()["all_hold"]
    beyond = {"float32": 2e-3, "bfloat16": 0.006}  # of .01 by itself: 1.6 times
    spoils = [{("here", name): off} for name, off in beyond.items()]
    spoils += [{("here", name, "keys"): off} for name, off in beyond.items()]
    for spoilt in (*spoils, {"bits": True}):
        said = found(spoilt=spoilt)
        assert (
            not said["all_hold"]
            and [part["holds"] for part in said.values() if isinstance(part, dict)].count(False) == 1
        )


def test_scratch_of_a_convolution_is_no_result():
    """What an algorithm needs beside its result is bytes without a meaning: another card may need none."""
    entry = ["ENTRY %main (x: bf16[8]) -> bf16[8] {", "  %x = bf16[8]{0} parameter(0)"]
    call = '  %c = (bf16[8]{0}, u8[1000000]{0}) custom-call(%x), custom_call_target="__cudnn$convForward"'
    (kernel,) = hlo.kernels("\n".join([*entry, call, "}"]))
    assert kernel.bytes == 32 and kernel.operation == "cudnn$convForward"


def test_a_fixed_cost_and_a_rate():
    """4 ms a step and a quarter of a millisecond an image."""
    found = alone.fit([32, 64, 256], [4 + 0.25 * b for b in (32, 64, 256)])
    assert found["images_per_second_at_large_batches"] == pytest.approx(4000)
    assert found["fixed_milliseconds"] == pytest.approx(4)


def test_the_table_judges_by_the_card():
    """Bands of the H200, a comparison that is not fair, and a step that is not right."""
    pace = {"images_per_second": 4600.0, "step_milliseconds": 55.0, "spread_milliseconds": [54.0, 56.0]}
    pace["batch_size"] = 256
    slow = pace | {"images_per_second": 2000.0}
    found = {
        "card": "1 x NVIDIA H200 in 1 process",
        "jax": "0",
        "sizes": "short",
        "not_measured": [],
        "correct": {"all_hold": False, "the same call twice": {"holds": False, "differ": ["x"]}},
        "steps": {"batch 256": pace},
        "beside_pytorch": {
            "ResNet-50, ours": pace,
            "ResNet-50, PyTorch, eager, NCHW": slow,
            "ResNet-50, PyTorch, broken": {"failed": "why"},
            "ResNet-50, PyTorch, grouped": pace,
            "ResNet-50, ours over PyTorch's fastest": 2.3,
        },
    }
    lines = table.of(found)
    assert "batch 256: 4,600 images/s, 55.00 ms (54.00 to 56.00); good" in lines
    assert "correct: NO" in lines and "DOES NOT HOLD" in lines
    assert "a fair comparison: NO, its fastest is below 2,300 images/s" in lines and "broken: why" in lines
    assert "par" in table.of(found | {"steps": {"batch 256": slow}}) and "good" not in table.of(found | {"card": "CPU"})


def test_xla_knows_the_flags():
    """An unknown flag aborts the process; all of them in one."""
    environment = os.environ | {"XLA_FLAGS": " ".join(xla_flags.FLAGS), "JAX_PLATFORMS": "cpu"}
    code = "import jax; jax.jit(lambda x: x + 1)(1)"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_each_flag_is_tried_alone(monkeypatch):
    """None first and last; what a flag broke is said."""
    seen = []

    def run(command, *, env, **options):
        seen.append(env["XLA_FLAGS"])
        if "triton" in seen[-1]:
            return subprocess.CompletedProcess(command, 1, "", "no such flag")
        rate = {"images_per_second": float(len(seen)), "compile_seconds": 1.0}
        path = next(a.removeprefix("--output=") for a in command if a.startswith("--output="))
        Path(path).write_text(
            json.dumps({"card": "a card", "steps": {"batch 32": rate, "fit": {}}, "demo": {"demo": rate}})
        )
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(xla_flags.subprocess, "run", run)
    monkeypatch.setenv("XLA_FLAGS", "")
    found = xla_flags.measure("short", None)
    assert seen == [*xla_flags.FLAGS, ""] and next(iter(found)) == "none" and list(found)[-1] == "none, at the end"
    assert found["none, at the end"]["batch 32"] == len(seen) and found["none"]["demo"] == 1
    assert "no such flag" in found["--xla_gpu_enable_triton_gemm=false"]["failed"]
    assert all(part["expected"] for part in found.values())


def test_a_compiler_for_a_gpu_gets_the_users_flags_alone(monkeypatch):
    """What commands add for a CPU would end it; the compilation itself is left out."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_a=1")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    seen = []

    def compiled(c):
        seen.append((c.model.dtype, os.environ["XLA_FLAGS"], os.environ["JAX_PLATFORMS"]))
        raise ConfigError("seen")

    monkeypatch.setattr(program, "compiled", compiled)
    with pytest.raises(ConfigError, match="seen"):
        program.command(["--config=cifar10_demo"])
    assert seen == [("bfloat16", "--xla_a=1", "cpu")]


def test_results_name_the_code(tmp_path, monkeypatch):
    """The commit, and that it was changed; nothing outside of a clone."""
    repo = tmp_path / "clone"
    (repo / "benchmarks").mkdir(parents=True)
    monkeypatch.setattr(output, "__file__", str(repo / "benchmarks" / "output.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert output.commit() is None
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b commit -qm one"):
        (repo / "file").write_text("one")
        subprocess.run(["git", *command.split()], cwd=repo, check=True)
    assert re.fullmatch("[0-9a-f]{7,}", output.commit())
    (repo / "file").write_text("two")
    assert output.commit().endswith("-dirty")
