"""Training algorithms, one file each, in an explicit table."""

from collections.abc import Callable

from moco_jax.mechanisms import end_to_end, memory_bank, moco
from moco_jax.state import Mechanism

MECHANISMS: dict[str, Callable[..., Mechanism]] = {
    "moco": moco.make,
    "end_to_end": end_to_end.make,
    "memory_bank": memory_bank.make,
}
VIEWS = {"moco": 2, "end_to_end": 2, "memory_bank": 1}  # how many views of a row a step looks at, from the first on
