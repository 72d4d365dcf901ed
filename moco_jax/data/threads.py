"""Work on many items by threads: results in order, and few of them in memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

AT_ONCE = 2_000  # items handed to the threads, so that a million do not wait in memory

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int, at_once: int = AT_ONCE
) -> Iterator[Result]:
    """`function` of every item, in their order, by `workers` threads; the threads have `at_once` items at most.

    The first error in that order is raised in its turn. It, or closing the iterator, ends the threads: what was not
    begun is not done.
    """
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                if len(waiting) == at_once:
                    yield waiting.popleft().result()
                waiting.append(pool.submit(function, item))
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
