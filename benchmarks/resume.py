"""Runs that are stopped and go on, beside runs that nobody stopped, as JSON.

    python -m benchmarks.resume --output=benchmarks/results/resume.json

`train.py` is stopped after each of its 24 steps in turn and called again, with 1 process of 4 devices, and after every
fifth with 2 processes of 2, on resident and streamed images: is the state the same bit for bit, and every number of the
log? Then it is begun with one of these and goes on with another: how far are the states apart, in double and in single
precision, and how far are those of undisturbed runs, which differ by the order of sums alone?
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import output, runs
from moco_jax.cli import flags

NAMED = {"output": (None, "file for the JSON, besides stdout")}
USAGE = "usage: python -m benchmarks.resume [--output=FILE]"
TOTAL = 24  # steps of SETTINGS, four of them an epoch


class Layout(NamedTuple):
    """Processes, and devices of each."""

    processes: int
    devices: int

    def __str__(self) -> str:
        """1x4."""
        return f"{self.processes}x{self.devices}"


class Leg(NamedTuple):
    """One call of `train.py`: the run's folder, the step of the run at which it is to stop, None: its end."""

    workdir: str
    stop: int | None


HERE, ELSEWHERE = (Layout(1, 4), Layout(2, 2)), (Layout(1, 1), Layout(1, 2), Layout(1, 8), Layout(2, 2))


def walk(layout: Layout, legs: Iterable[Leg], *changes: str, **environment: str) -> None:
    """Do some calls of `train.py` one after another, in the same processes; raises RuntimeError where one fails."""
    command = ["-m", "benchmarks.resume", "legs", json.dumps([*legs]), *runs.overrides({}), *changes]
    runs.finished(runs.launch(command, environment, layout.devices, layout.processes))


def _legs(argv: Sequence[str]) -> int:
    """Within a process: what `walk` says."""
    flags.prepare_environment()
    from moco_jax import parallel, stopping
    from moco_jax.checkpoints.folder import steps_of
    from moco_jax.cli import train

    parallel.start()
    parallel.start = lambda *_: None  # type: ignore[assignment]  # once for a process
    for workdir, stop in json.loads(argv[0]):
        first = max(steps_of(Path(workdir) / "checkpoints"), default=0)
        parallel.barrier(f"{workdir} {stop}")  # all have looked before anyone goes on
        asked = (step == stop for step in range(first + 1, TOTAL + 1))

        # All processes at one step, as they agree on; who tells them is tests/test_preemption.py's business.
        stopping.Signals.asked = lambda _: signal.SIGTERM if next(asked) else None  # type: ignore[method-assign]  # noqa: B023
        status = 0
        try:
            status = train.main([f"--workdir={workdir}", *argv[1:]])
        except SystemExit as end:
            status = int(end.code or 0)
        if status != (0 if stop is None else 143):
            print(f"{workdir}, to stop at {stop}, ended with {status}")
            return 1
    return 0


def exact(folder: Path, layout: Layout, path: str, stops: Sequence[int]) -> dict[str, Any]:
    """How many runs that stop once, after each of these steps, end in the state and the log of one that did not."""
    legs = [Leg(str(folder / "straight"), None)]
    for stop in stops:
        legs += [Leg(str(folder / f"stopped_{stop}"), stop), Leg(str(folder / f"stopped_{stop}"), None)]
    walk(layout, legs, f"--config.data.path={path}")
    straight = folder / "straight"
    stopped = [folder / f"stopped_{stop}" for stop in stops]
    return {
        "layout": str(layout),
        "data.path": path,
        "stops": len(stops),
        "same state": sum(runs.state(run) == runs.state(straight) for run in stopped),
        "same log": sum(runs.lines(run) == runs.lines(straight) for run in stopped),
    }


def elsewhere(folder: Path, begun: Layout, others: Sequence[Layout], stop: int, *, dtype: str) -> dict[str, Any]:
    """How far from the end of a run on one layout others end: begun there and moved, and elsewhere from the start."""
    wide = {"JAX_ENABLE_X64": "1"} if dtype == "float64" else {}
    settings = [f"--config.model.dtype={dtype}"]
    here = [Leg(str(folder / "straight"), None), *(Leg(str(folder / f"moved_{other}"), stop) for other in others)]
    walk(begun, here, *settings, **wide)
    wanted, found = _state(folder / "straight"), {}
    for other in others:
        walk(other, [Leg(str(folder / name), None) for name in (f"moved_{other}", f"all_{other}")], *settings, **wide)
        apart = (_gap(_state(folder / f"{name}_{other}"), wanted) for name in ("moved", "all"))
        found[str(other)] = dict(zip(("begun elsewhere", "undisturbed"), apart, strict=True))
    return {"begun on": str(begun), "stopped at": stop, "dtype": dtype, "largest relative difference of a leaf": found}


def _state(workdir: Path) -> dict[str, np.ndarray]:
    from moco_jax.checkpoints import verified
    from moco_jax.checkpoints.folder import steps_of

    folder = workdir / "checkpoints" / str(steps_of(workdir / "checkpoints")[-1])
    return verified.leaves(verified.read(folder, verified.fields(folder)))


def _gap(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> float:
    """The largest of max |a - b| / max |b| over leaves."""
    assert a.keys() == b.keys()
    ends = ((x.astype(np.float64), b[name].astype(np.float64)) for name, x in a.items())
    return max(float(np.abs(x - y).max() / max(np.abs(y).max(), 1e-300)) if (x != y).any() else 0.0 for x, y in ends)


def measure(folder: Path, stops: Sequence[int], others: Sequence[Layout]) -> dict[str, Any]:
    """Everything, over these steps and layouts."""
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    cases = [(layout, path) for layout in HERE for path in ("resident", "streamed")]
    few = stops[::5]  # within epochs and at an end; two processes take four times as long
    same = [exact(folder / f"{a}_{path}", a, path, stops if a.processes == 1 else few) for a, path in cases]
    apart = [elsewhere(folder / dtype, HERE[0], others, 6, dtype=dtype) for dtype in ("float64", "float32")]
    return {"on the same layout": same, "on another": apart}


def main() -> int:
    """Measure; 1 where a state or a log is another, or double precision leaves more than 1e-10."""
    if sys.argv[1:2] == ["legs"]:
        return _legs(sys.argv[2:])
    return flags.run(_run, sys.argv[1:])


def _run(argv: Sequence[str]) -> int:
    _, named = flags.parse_without_page(argv, places={}, named=NAMED, usage=USAGE)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        found = measure(Path(folder), range(1, TOTAL), ELSEWHERE)
    output.keep(found, named["output"])
    same = all(case["stops"] == case["same state"] == case["same log"] for case in found["on the same layout"])
    gaps = found["on another"][0]["largest relative difference of a leaf"].values()
    return int(not same or max(max(gap.values()) for gap in gaps) > 1e-10)


if __name__ == "__main__":
    sys.exit(main())
