"""A run that is asked to stop answers between two steps, by a checkpoint of that very step: nothing is lost.

SIGTERM is what Slurm, spot machines and Kubernetes send before they take a machine away; SIGINT is Ctrl-C.
"""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

from moco_jax import parallel


class Stopped(BaseException):
    """The run was asked to stop. Like KeyboardInterrupt no error, as it may come from within any work."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number  # of the signal


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """A Stopped inside ends the program as its signal would: KeyboardInterrupt, or SystemExit with 128 + its number."""
    try:
        yield
    except Stopped as stop:
        if stop.number == signal.SIGINT:
            raise KeyboardInterrupt("the same command goes on from there") from None
        raise SystemExit(128 + stop.number) from None


class Signals:
    """Notes SIGTERM and SIGINT while it is entered; several processes agree on the call at which they stop.

    With several processes JAX notes SIGTERM and tells the others. A second SIGINT stops at once. Outside of the main
    thread signals are somebody else's, and stay theirs. One that is not entered never asks for anything.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._calls, self._entered, self._may_leave = 0, False, False
        self._before: dict[int, Any] = {}

    def asked(self) -> int | None:
        """The signal by which the run is to stop now, or None; asked once per call of the step, by every process."""
        self._calls += 1
        if self._entered and parallel.process_count() > 1:
            agreed = parallel.preempted(self._calls)
            return (self._received or signal.SIGTERM) if agreed else None
        return self._received

    @contextlib.contextmanager
    def leaving(self) -> Iterator[None]:
        """Work that a signal may leave where it is: raises Stopped then; of one process alone, others would wait."""
        self._may_leave = parallel.process_count() == 1
        try:
            if self._may_leave and self._received is not None:
                raise Stopped(self._received)
            yield
        finally:
            self._may_leave = False

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self._received == signal.SIGINT:
            raise KeyboardInterrupt
        self._received = number
        text = f"{signal.Signals(number).name}: stopping after this step, with a checkpoint\n"
        with contextlib.suppress(OSError, ValueError):  # whoever read it may be gone, as tee on Ctrl-C
            os.write(sys.stderr.fileno(), text.encode())  # print is not made for signal handlers
        if parallel.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # to JAX, which tells the other processes
        elif self._may_leave:
            raise Stopped(number)

    def __enter__(self) -> "Signals":
        """The same; leaving gives signals back to whoever had them."""
        self._entered = True
        if threading.current_thread() is threading.main_thread():
            numbers = (signal.SIGINT,) if parallel.process_count() > 1 else (signal.SIGINT, signal.SIGTERM)
            for number in numbers:
                if signal.getsignal(number) != signal.SIG_IGN:  # of a job in the background
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._entered = False
        for number, handler in self._before.items():
            signal.signal(number, handler)
