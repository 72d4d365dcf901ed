"""Batches for the loop, and how long the device has nothing to do for want of one."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from moco_jax import parallel
from moco_jax.logs import RunLog


class Feed:
    """Host batches, one call's at a time, and the calls in flight: one runs and one stands behind it.

    More than that would hold the batches of all of them on the device.
    """

    def __init__(self, batches: Iterator[Any], log: RunLog):
        self._batches, self._log, self._last = batches, log, None
        self._watcher = ThreadPoolExecutor(1)  # sees when the device is done, while this thread waits for images
        self._done = self._watcher.submit(time.perf_counter)

    def take(self, count: int) -> Any:
        """The next `count` batches, stacked: leaves (count, ...). The log hears how long the device waited for them."""
        begun = time.perf_counter()
        found = [next(self._batches) for _ in range(count)]
        if self._done.done():
            self._log.waited(time.perf_counter() - max(begun, self._done.result()))
        return jax.tree.map(_stack, *found)

    def dispatched(self, metrics: Any) -> None:
        """A call was dispatched that gives `metrics`: wait for the one before it, and watch this one."""
        parallel.wait(self._last)
        self._last, self._done = metrics, self._watcher.submit(_when_done, metrics)


def _when_done(metrics: Any) -> float:
    """The time when a call is over."""
    parallel.wait(metrics)
    return time.perf_counter()


def _stack(*leaves: np.ndarray) -> np.ndarray:
    return np.stack(leaves) if len(leaves) > 1 else leaves[0][None]  # (steps, rows, ...)
