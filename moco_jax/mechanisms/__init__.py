"""Training algorithms, one file each, in an explicit table."""

from collections.abc import Callable

from moco_jax.mechanisms import moco
from moco_jax.state import Mechanism

MECHANISMS: dict[str, Callable[..., Mechanism]] = {"moco": moco.make}
