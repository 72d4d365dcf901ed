"""One of two processes that share a folder of checkpoints, for test_two_stores: `python -m tests.two_stores DIR`."""

import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np

from moco_jax import parallel
from moco_jax.checkpoints import arrays, verified
from moco_jax.checkpoints.store import Store

ABOUT = {"format": 1}


def init():
    """A state of two leaves."""
    import jax.numpy as jnp

    return {"memory": {"queue": jnp.arange(12.0).reshape(4, 3)}, "step": jnp.asarray(3, jnp.int32)}


def attempt(what, call):
    """Print what a call gives, or its error."""
    try:
        print(f"{what}: {call()}", flush=True)
    except (RuntimeError, OSError, ValueError) as error:
        print(f"{what}: {type(error).__name__}: {error}", flush=True)
    parallel.barrier(what)


def values(state):
    """A state as a line."""
    return np.asarray(parallel.host(state)["memory"]["queue"]).ravel().tolist()


def main() -> None:
    """Save, damage, decide, restore, fail: what each process says of each."""
    parallel.start()
    first, folder = parallel.is_first_process(), Path(sys.argv[1])
    state, like = parallel.born(init), parallel.abstract(init)
    with Store(folder, keep=3) as store:
        for step in (1, 2, 3):
            store.save(step, state, ABOUT)
    parallel.barrier("saved")
    print("files of others:", [p.name for p in (folder / "3/state").glob("ocdbt.process_[1-9]*")])
    if first:
        (folder / "3/about/metadata").write_text("{")
    parallel.barrier("damaged")
    with Store(folder, keep=3) as store:
        attempt("whole", store.whole)
        attempt("restored", lambda: values(store.restore(2, like)))
        read = verified.read
        if not first:
            verified.read = lambda *_: (_ for _ in ()).throw(verified.Fault("its state cannot be read: here"))
        attempt("one cannot", lambda: values(store.restore(2, like)))
        verified.read = read
        for step in (1, 2):
            if first:
                (folder / str(step) / "digests/metadata").unlink()
        parallel.barrier("all damaged")
        attempt("none", store.whole)

    def last() -> str:
        with Store(folder / "other") as store:
            store.save(1, state, ABOUT)
            write = arrays.write
            arrays.write = lambda *_: (_ for _ in ()).throw(OSError("full"))
            store.save(2, state, ABOUT, warn=print)
            store.latest()
            arrays.write = write
        return "no error"

    attempt("last", last)


if __name__ == "__main__":
    main()
