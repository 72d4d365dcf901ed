"""`moco-jax compare RUN REFERENCE.csv`: flags, then a table and a verdict for each quantity."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

from moco_jax import places
from moco_jax.cli import flags
from moco_jax.config import ConfigError
from moco_jax.reports import compare, runs

USAGE = (
    "usage: moco-jax compare RUN REFERENCE.csv [--lr_tolerance=X] [--loss_tolerance=X] [--knn_tolerance=X] "
    "[--output=FILE]\n\n"
    "A run's learning rate, loss and kNN beside a reference's: where and by how much it leaves it.\n"
    "The learning rate is computed from the run's config. Exit status: 0 within the tolerances at every epoch so far,\n"
    "1 outside at one or more, 2 an error, or a column of the reference with no epoch in common.\n\n"
    "  moco-jax compare runs/cifar10 cifar10_moco_asym200.csv"
)
PLACES = {
    "RUN": "folder of a run; it may still be going",
    "REFERENCE.csv": "columns epoch (from 1), and any of lr, train_loss (epoch means), knn_top1 (percent)",
}
TOLERANCES = {"lr": "lr_tolerance", "train_loss": "loss_tolerance", "knn_top1": "knn_tolerance"}
NAMED = {
    flag: (compare.QUANTITIES[column].tolerance, f"largest difference within; {compare.QUANTITIES[column].why}")
    for column, flag in TOLERANCES.items()
} | {"output": (None, "file for every epoch as CSV; the console shows about fifteen")}


def main(argv: Sequence[str] | None = None) -> int:
    """Compare as the flags say; returns the exit status, like diff: 0 within, 1 outside, 2 an error."""
    return flags.run(_compare, argv, error_status=2)


def _compare(argv: Sequence[str]) -> int:
    (folder, path), named = flags.parse_without_page(argv, places=PLACES, named=NAMED, usage=USAGE)
    for name in TOLERANCES.values():
        if not 0 <= named[name] < math.inf:
            raise ConfigError(f"--{name} must be 0 or more, not {named[name]}")
    if named["output"]:
        _check_output(Path(named["output"]), Path(folder), Path(path))
    reference = compare.read_reference(Path(path))
    run = runs.read(places.at(folder))
    if not run.epochs:
        raise ConfigError(
            f"{folder} has done {run.step} of the {run.steps_per_epoch} steps of its first epoch: wait for it"
        )
    ours = {"train_loss": run.loss, "knn_top1": run.knn_top1}
    if "lr" in reference:
        os.environ["JAX_PLATFORMS"] = "cpu"  # the accelerator may be the run's own
        ours["lr"] = learning_rates(run)
    comparisons = [
        compare.Comparison(column, named[TOLERANCES[column]], ours[column], values)
        for column, values in reference.items()
    ]
    print(compare.table(comparisons) + "\n")
    print("\n".join(compare.verdict(c) for c in comparisons))
    left_out = f"; {run.unreadable} unreadable lines of its log are left out" if run.unreadable else ""
    print(f"{folder}: {run.epochs} of {run.config.train.epochs} epochs, step {run.step}/{run.total}{left_out}")
    if named["output"]:
        compare.write(comparisons, Path(named["output"]))
    if any(c.outside() for c in comparisons):
        return 1
    return 0 if all(c.differences for c in comparisons) else 2


def _check_output(output: Path, folder: Path, reference: Path) -> None:
    """Raises ConfigError for an output that would write over what is read, or that cannot be written."""
    if output.resolve() == reference.resolve() or folder.resolve() in output.resolve().parents:
        raise ConfigError(f"--output={output} is what is read: the reference or a run's folder; give another file")
    if not output.resolve().parent.is_dir():
        raise ConfigError(f"--output={output}: there is no folder {output.parent}")


def learning_rates(run: runs.Run, *, begun: bool = False) -> dict[int, float]:
    """The rate in each epoch that is over (or begun), from the run's config: its log holds none."""
    import jax
    import jax.numpy as jnp

    from moco_jax.core import schedules

    rate = schedules.learning_rate(
        run.config.optimizer,
        batch_size=run.config.batch_size,
        epochs=run.config.train.epochs,
        steps_per_epoch=run.steps_per_epoch,
    )
    last = min(run.epochs + begun, run.config.train.epochs)
    rates = jax.vmap(rate)(jnp.arange(last) * run.steps_per_epoch)  # (epochs,)
    return dict(enumerate(rates.tolist(), start=1))
