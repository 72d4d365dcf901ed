"""One of several processes of two tiny runs, for test_two_processes: `python -m tests.two_processes DIR DEVICES`."""

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


def run_config(path: str) -> config.Config:
    """Everything on: groups over two devices, a block over all, symmetric, own keys left out, two epochs of four steps.

    More keys than images: a query has several old keys of its own.
    """
    c = tiny.double(tiny.config(bn=config.BatchNorm(8), shuffle=config.Shuffle(16)))
    return tiny.dataclasses.replace(
        c,
        moco=config.Moco(momentum=0.9, temperature=0.2, symmetric=True),
        queue=config.Queue(70, mask_same_image=True),
        data=config.Data(mean=(0.5,) * 3, std=(0.25,) * 3, path=path),
        views=config.Views(recipe="moco_v2", size=tiny.SIZE),
        train=config.Train(epochs=2),
        eval=config.Eval(every_epochs=0),
    )


def main() -> None:
    """A resident run and a streamed one, into folders of these names."""
    parallel.start()
    for path in ("resident", "streamed"):
        c = run_config(path)
        source = ArraySource(tiny.images(), name="tiny")
        # A net whose compile is short: `test_invariance` has a ResNet.
        result = pretrain.train(c, os.path.join(sys.argv[1], path), source=source, encoder=tiny.small_encoder(c, 3))
        print(parallel.describe(), result.checkpoint)


if __name__ == "__main__":
    main()
