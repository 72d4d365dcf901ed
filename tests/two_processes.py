"""One of several processes of a tiny run, for test_two_processes: `python -m tests.two_processes WORKDIR DEVICES`."""

import os
import sys

os.environ.setdefault("NPROC", "32")
os.environ["JAX_PLATFORMS"] = "cpu"

import jax

jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
jax.config.update("jax_enable_x64", True)

from moco_jax import config, parallel, pretrain
from moco_jax.data.sources import ArraySource
from tests import tiny


def main() -> None:
    """An epoch of four steps."""
    parallel.start()
    c = tiny.double(tiny.config(bn=config.BatchNorm(8), shuffle=config.Shuffle(16)))
    c = tiny.dataclasses.replace(
        c,
        data=config.Data(mean=(0.5,) * 3, std=(0.25,) * 3),
        views=config.Views(recipe="moco_v2", size=tiny.SIZE),
        train=config.Train(epochs=1),
        eval=config.Eval(every_epochs=0),
    )
    result = pretrain.train(c, sys.argv[1], source=ArraySource(tiny.images(), name="tiny"))
    print(parallel.describe(), result.checkpoint)


if __name__ == "__main__":
    main()
