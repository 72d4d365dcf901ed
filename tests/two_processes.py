"""One of several processes of two tiny runs, for test_two_processes: `python -m tests.two_processes DIR DEVICES`."""

import os
import sys

os.environ.setdefault("NPROC", "32")
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

jax.config.update("jax_num_cpu_devices", int(sys.argv[2]))
jax.config.update("jax_enable_x64", True)

from moco_jax import assembly, config, initial, parallel, pretrain, protocols
from moco_jax.data import opening
from moco_jax.data.sources import ArraySource
from moco_jax.evaluation import finetune, loading, probe
from tests import tiny


def run_config(path: str, init_from: str | None = None) -> config.Config:
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
        train=config.Train(epochs=2, init_from=init_from),
        eval=config.Eval(every_epochs=0),
    )


def evaluate(run: str) -> None:
    """A linear probe on augmented views and two draws of fine-tuning, of the encoder of a run."""
    labels = np.arange(len(tiny.images())) % 3
    opening.open_split = lambda *_, **__: ArraySource(tiny.images(), labels, "tiny")  # type: ignore[assignment]

    def load(path: str | os.PathLike[str]) -> loading.Loaded:
        return loading.load(path, encoder=tiny.small_encoder(run_config("resident"), 3))

    data = protocols.Labelled(dataset="tiny", test_split=None, test_share=0.25)
    views = protocols.Views(recipe="supervised")
    linear = protocols.Linear(batch_size=8, epochs=3, schedule="cosine", milestones=(), data=data, views=views)
    print(probe.run(linear, run, os.path.join(run, "linear"), load=load))
    fit = protocols.Fit(batch_size=8, epochs=2, group_size=None)
    few = protocols.Finetune(labels="3", draws=2, data=data, views=views, fit=fit)
    print(finetune.run(few, run, os.path.join(run, "finetune"), load=load))


def start_from_different_weights(run: str) -> None:
    """What a process whose file is another one than the first's does: its error, printed."""
    c = run_config("resident", init_from=run)
    own = {"source": ArraySource(tiny.images(), name="tiny"), "encoder": tiny.small_encoder(c, 3)}
    parts = assembly.assemble(c, **own)
    start = initial.begin(parts.config, own["encoder"], parts.values, stored=None, step=0, where=run, given=True)
    mine = jax.tree.map(lambda leaf: leaf * (1 + jax.process_index()), start.trees)
    try:
        initial.born(parts.mechanism.init, start._replace(trees=mine))
    except Exception as error:
        print("refused:", str(error).splitlines()[0])


def main() -> None:
    """A resident run and a streamed one that starts from it, into folders of these names; evaluations of the first."""
    parallel.start()
    first = os.path.join(sys.argv[1], "resident")
    for path, init_from in (("resident", None), ("streamed", first)):
        c = run_config(path, init_from)
        source = ArraySource(tiny.images(), name="tiny")
        # A net whose compile is short: `test_invariance` has a ResNet.
        result = pretrain.train(c, os.path.join(sys.argv[1], path), source=source, encoder=tiny.small_encoder(c, 3))
        print(parallel.describe(), result.checkpoint)
    evaluate(first)
    if jax.process_count() > 1:
        start_from_different_weights(first)


if __name__ == "__main__":
    main()
