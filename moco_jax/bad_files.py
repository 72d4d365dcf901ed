"""What a run says of the images that it cannot read: each by name when it is found, and all of them at the end."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

from moco_jax import parallel
from moco_jax.data.replacing import Bad, Replacing
from moco_jax.logs import BAD_FILES, RunLog


class Told:
    """Tells the log of the bad files that threads find in a source; leaving it, also by an error, lists all.

    Process 0 writes the log. Each process reads images of its own: the others tell their stderr.
    """

    def __init__(self, log: RunLog, source: Replacing, *, step: int, every: int) -> None:
        self._log, self._source, self._step, self._every = log, source, step, every

    def batches(self, made: Iterator[Any]) -> Iterator[Any]:
        """The batches, one for each step; with that of every `every`th step the log hears what is new."""
        with contextlib.closing(made) as batches:  # type: ignore[type-var]  # a generator, whose threads end here
            for batch in batches:
                self._step += 1  # first: who takes as many batches as there are steps never comes back after the last
                if self._step % self._every == 0:
                    self._tell(self._source.news(), "new")
                yield batch

    def __enter__(self) -> "Told":
        """Itself; what was found before the first step is told."""
        self._tell(self._source.news(), "new")
        return self

    def __exit__(self, *_: object) -> None:
        self._tell(self._source.bad, "all")

    def _tell(self, files: list[Bad], which: str) -> None:
        if not files:
            return
        text = self._source.said(files, which)
        if not parallel.is_first_process():
            sys.stderr.write(f"warning: {text}\n")
            return
        self._log.say(f"warning: {text}")
        counts = {"count": len(self._source.bad), "images": len(self._source)}
        listed = [one._asdict() for one in files]
        self._log.write({"event": BAD_FILES, "step": self._step, **counts, which: listed})
