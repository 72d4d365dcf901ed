"""A file that one process holds against all others."""

import fcntl
from typing import IO

from moco_jax.config import ConfigError


def take(file: IO[str], at_work: str) -> None:
    """Hold an open file until it is closed, or the process ends, however that ends.

    Raises ConfigError where another process, which is `at_work`, holds it, and OSError where the disk has no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(f"another process is {at_work}; let it finish, or stop it") from None
