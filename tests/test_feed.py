"""The feed: batches by the call, and waiting is only what the device has nothing to do."""

import threading
from concurrent.futures import wait

import numpy as np
import pytest

from moco_jax import feed


class Log:
    def __init__(self):
        self.seconds = []

    def waited(self, seconds):
        self.seconds.append(seconds)


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass when somebody says so; a call is over when its event is set."""
    now = [0.0]
    monkeypatch.setattr(feed.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(feed.parallel, "wait", lambda event: event is None or event.wait(30))
    return now


def fed(happens, log):
    """A feed whose batches come after what `happens` does."""

    def batches():
        for i in range(100):
            happens(i)
            yield {"ids": np.full(3, i)}

    made = feed.Feed(batches(), log)
    wait([made._done])
    return made


@pytest.mark.parametrize("count", [1, 3])
def test_batches_of_a_call_are_stacked(clock, count):
    """(count, rows), in order."""
    found = fed(lambda i: None, Log()).take(count)["ids"]
    np.testing.assert_array_equal(found, np.arange(count)[:, None] * np.ones((1, 3)))


def test_waiting_begins_when_the_device_is_done(clock):
    """Done before the batch was asked for, while it was made, and not at all before it was there."""
    log, call = Log(), threading.Event()

    def happens(i):
        if i == 0:
            clock[0] += 3.0
        if i == 1:  # the device has two more seconds to do
            clock[0] += 2.0
            call.set()
            wait([made._done])
            clock[0] += 5.0
        if i == 2:
            clock[0] += 7.0

    made = fed(happens, log)
    clock[0] = 20.0  # of an evaluation, say
    made.take(1)
    made.dispatched(call)
    made.take(1)
    other = threading.Event()
    made.dispatched(other)
    made.take(1)
    other.set()
    assert log.seconds == [3.0, 5.0]


def test_one_call_is_dispatched_ahead_and_no_more(clock, monkeypatch):
    """A call is waited for when the one behind it is dispatched: the batches of more would lie on the device."""
    waited, here = [], threading.current_thread()
    monkeypatch.setattr(
        feed.parallel, "wait", lambda call: waited.append(call) if threading.current_thread() is here else None
    )
    made = fed(lambda i: None, Log())
    for call in ("a", "b", "c"):
        made.dispatched(call)
    assert waited == [None, "a", "b"]
