"""Results in order, by threads that have few items at a time."""

import threading
import time

import pytest

from moco_jax.data import threads


def test_results_are_in_order_and_few_wait():
    """Of 100 items no more than five are taken before a result is; what comes first may end last."""
    taken, seen = [], 0

    def items():
        for i in range(100):
            taken.append(i)
            yield i

    def late(i):
        time.sleep(0.01 * (i % 4 == 0))
        return i

    for i, result in enumerate(threads.in_order(late, items(), workers=4, at_once=5)):
        seen += 1
        assert result == i and len(taken) <= seen + 5
    assert seen == 100


@pytest.mark.parametrize("end", ["error", "closed"])
def test_what_was_not_begun_is_not_done(end):
    """After an error, raised in its turn, and for who takes no more results."""
    begun, go_on = [], threading.Event()

    def work(i):
        begun.append(i)
        if i == 1 and end == "error":
            raise ValueError("one")
        if i > 1:
            go_on.wait(5)
        return i

    results = threads.in_order(work, range(50), workers=1)
    assert next(results) == 0
    threading.Timer(0.2, go_on.set).start()
    if end == "error":
        with pytest.raises(ValueError, match="one"):
            next(results)
    else:
        results.close()
    assert set(begun) <= {0, 1, 2}
