"""The momentum update of the target encoder."""

from typing import TypeVar

import optax

Tree = TypeVar("Tree")


def ema(target: Tree, online: Tree, momentum: float) -> Tree:
    """m * target + (1 - m) * online, for every parameter (paper, equation 2); batch statistics never come here.

    The step size 1 - m is formed in double precision as a Python float: 1 - .999 in float32 is 1e-5 off, and an array
    of another dtype would promote the tree.
    """
    return optax.incremental_update(online, target, 1.0 - momentum)
