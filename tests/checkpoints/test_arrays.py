"""What orbax says is kept from the console, and nothing that others say; the rest is in `test_store.py`."""

import logging

import pytest

from moco_jax.checkpoints import arrays


@pytest.mark.parametrize("name", ["absl", "asyncio"])
def test_only_orbax_is_silenced(name):
    """By the file that speaks, and by what is spoken of, as asyncio does of tasks that nobody asked about."""
    arrays._quiet()
    logger = logging.getLogger(name)

    def heard(path, message):
        return bool(logger.filter(logger.makeRecord(name, logging.ERROR, path, 1, message, (), None)))

    assert heard("/mine/data.py", "no such image") and logger.isEnabledFor(logging.ERROR)
    assert not heard("/site-packages/orbax/checkpoint/writer.py", "no space")
    assert not heard("/asyncio/base_events.py", "Task exception was never retrieved: coro in orbax/checkpoint")
