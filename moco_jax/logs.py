"""What a run says while it goes: JSON lines always, and on process 0 a progress bar or console lines."""

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from moco_jax import places

VERDICT = "verdict"  # the event that ends a run
BAD_FILES = "bad_files"  # the event that names images that cannot be read
EVALUATED = "evaluated"  # the event that says that all evaluations that were due after a step are in the log

MUCH, LONG = 0.1, 3.0  # share of the time, and seconds between two lines: to wait longer is worth a warning
CLOCK = ("images_per_second", "waiting")  # of a line: another machine, other numbers


def says(workdir: Path, event: str, step: int) -> bool | None:
    """Whether the log of a run has an event of a step; lines that a kill cut short say nothing. None: it has no log."""
    try:
        lines = places.read_log(workdir).splitlines()
    except FileNotFoundError:
        return None
    return any(record.get("event") == event and record.get("step") == step for record in map(_object, lines))


class RunLog:
    """Appends records to a folder's log and shows progress; a silent one (other processes) writes and shows nothing.

    What a silent one would have said, `hear` hears. A full disk stops nothing: lines wait until there is space.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        total_steps: int,
        first_step: int,
        batch_size: int,
        silent: bool = False,
        events: Any = None,  # an `events.Events`, which also gets every number
        hear: Callable[[str], None] | None = None,
        advice: str = "",  # what to do where training waits for images, to end a sentence
    ):
        self._file = None if silent else _opened(workdir)
        self._waiting = b""  # what could not be written yet
        self._events = None if silent else events
        self._hear = hear
        self._total, self._batch_size = total_steps, batch_size
        self._waited, self._told, self._advice = 0.0, False, advice
        self._last = (first_step, time.perf_counter())
        interactive = sys.stderr.isatty() and not silent
        self._bar = (
            tqdm(total=total_steps, initial=first_step, unit="step", dynamic_ncols=True) if interactive else None
        )

    def say(self, text: str) -> None:
        """One line for people."""
        if self._file is not None:
            try:
                tqdm.write(_printable(text), file=sys.stdout)
                sys.stdout.flush()
            except BrokenPipeError:
                silence(sys.stdout)  # whoever read it is gone, as tee on Ctrl-C; training goes on
            except OSError:
                pass  # a console that goes to a file on a full disk
        elif self._hear is not None:
            self._hear(text)

    def write(self, record: Mapping[str, Any]) -> None:
        """One JSON line; numbers that JSON cannot hold are written as null."""
        if self._file is not None:
            self._append(json.dumps({k: _plain(v) for k, v in record.items()}) + "\n")
        if self._events is not None and "event" not in record:
            self._events.numbers(record)

    def warn(self, step: int, text: str) -> None:
        """A warning: a line for people, and one in the file."""
        self.say(f"warning: {text}")
        self.write({"event": "warning", "step": step, "warning": text})

    def _append(self, line: str) -> None:
        """Write a line whole, after those that wait, or let it wait."""
        assert self._file is not None
        first = not self._waiting
        self._waiting += line.encode()
        try:
            while self._waiting:
                self._waiting = self._waiting[self._file.write(self._waiting) :]
        except OSError as error:
            if first:
                self._cannot(error)

    def _cannot(self, error: OSError) -> None:
        name = None if self._file is None else self._file.name
        self.say(f"warning: {name} cannot be written ({error.strerror or error}); training goes on")

    def flush(self) -> None:
        """Have every line so far where a reader finds it; one of a disk is there when it was written."""
        if self._file is not None:
            self._append("")
            try:
                self._file.flush()
            except OSError as error:
                self._cannot(error)

    def metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Metrics after `step` steps, with the images per second, and the share of waiting for them, since the last.

        The first time that much was waited there is a warning, which says how fast host and device are apart.
        """
        now = time.perf_counter()
        done = (step - self._last[0]) * self._batch_size
        seconds = max(now - self._last[1], 1e-9)
        waited, self._waited = self._waited, 0.0
        rate, share = (done / seconds, min(waited / seconds, 1.0)) if done else (math.nan, math.nan)
        self._last = (step, now)
        self.write({"step": step, **metrics, "images_per_second": rate, "waiting": share})
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            self._bar.set_postfix_str(_short(metrics, rate, share))
        else:
            left = f"  {clock((self._total - step) * self._batch_size / rate)} left" if done else ""
            self.say(f"step {step}/{self._total}  {_short(metrics, rate, share)}{left}")
        if share > MUCH and waited >= LONG and not self._told:
            self._told = True
            self.warn(
                step,
                f"{share:.0%} of the time went by waiting for images: the host makes {rate:,.0f} images/s ready, and "
                f"the device could take {rate / max(1 - share, 1e-3):,.0f}{self._advice}",
            )

    def waited(self, seconds: float) -> None:
        """Training had nothing to do for so long, as the next batch was not there yet."""
        self._waited += seconds

    def restart(self, step: int) -> None:
        """Form the next rate from now and `step` on."""
        self._last, self._waited = (step, time.perf_counter()), 0.0

    def exclude(self, seconds: float) -> None:
        """Take `seconds` (an evaluation, a first compile) out of the time that the next rate is formed over."""
        self._last = (self._last[0], self._last[1] + seconds)

    def __enter__(self) -> "RunLog":
        """The log itself; leaving closes the bar and the file."""
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._file is not None:
            self.flush()
            self._file.close()
        if self._events is not None:
            self._events.close()


def _opened(workdir: Path) -> Any:
    log = places.log_of(workdir)
    if places.is_remote(workdir):
        return places.Segments(log)
    file = log.open("a+b", buffering=0)
    if file.seek(0, os.SEEK_END):
        file.seek(-1, os.SEEK_END)
        if file.read() != b"\n":  # a line that a kill or a full disk cut short: the next one is to be read
            file.write(b"\n")
    return file


def _short(metrics: Mapping[str, float], rate: float, share: float) -> str:
    parts = [f"loss {metrics['loss']:.3f}"] if "loss" in metrics else []
    if "pretext_accuracy" in metrics:
        parts.append(f"pretext {metrics['pretext_accuracy']:.1%}")
    if math.isfinite(rate):
        parts.append(f"{rate:,.0f} images/s")
    if share > MUCH:
        parts.append(f"waits {share:.0%}")
    return "  ".join(parts)


def _printable(text: str) -> str:
    """Text as the console can show it: names of files are bytes, and need not be text."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def silence(stream: Any) -> None:
    """Let what is written to a stream whose reader has gone go nowhere, also what waits in it when the program ends."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # what is no file keeps nothing
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def clock(seconds: float) -> str:
    """1:02:03 or 2:03, as people write what is left."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
