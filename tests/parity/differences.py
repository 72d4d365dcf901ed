"""The largest difference of each of several quantities, and where it was."""

from typing import Any

import numpy as np


class Worst(dict[str, tuple[float, str]]):
    """The largest difference of every quantity, and where it was."""

    def see(self, quantity: str, difference: Any, where: str) -> None:
        """Keep the largest; a nan is larger than anything."""
        value = float(np.max(np.abs(difference)))
        largest = self.get(quantity, (-1.0, ""))[0]
        if not (value <= largest or np.isnan(largest)):
            self[quantity] = (value, where)


def relative(difference: np.ndarray, size: float) -> np.ndarray:
    """A difference as a share of a size; of nothing, as it is."""
    return difference / (size or 1.0)
