"""`moco-jax prepare dataset NAME`: flags, then one call."""

from collections.abc import Callable, Sequence

from moco_jax import config
from moco_jax.cli import flags

USAGE = (
    "usage: moco-jax prepare dataset NAME [--data_dir=DIR]\n\n"
    "A data set of TFDS, downloaded and written as array_record once, to be read without TensorFlow from then on.\n"
    'Most data sets need TensorFlow for it, in a process of its own: pip install "moco_jax[prepare]".\n\n'
    "  moco-jax prepare dataset cifar10\n"
    "  moco-jax train --config=cifar10_small --workdir=runs/cifar10"
)
PLACES = {"NAME": "a name in TFDS's catalogue, such as cifar10"}
NAMED = {"data_dir": (None, "folder for data sets, as config.data.data_dir; None: TFDS's own, ~/tensorflow_datasets")}


def main(argv: Sequence[str] | None = None) -> int:
    """Prepare what the first argument says; returns the exit status."""
    return flags.run(_prepare, argv)


def _prepare(argv: Sequence[str]) -> int:
    if not argv or argv[0].startswith("-"):
        flags.parse_without_page(argv, places={"dataset": "what to prepare", **PLACES}, named=NAMED, usage=USAGE)
    if argv[0] not in KINDS:
        raise config.unknown("what to prepare,", argv[0], KINDS)
    return KINDS[argv[0]](argv[1:])


def _dataset(argv: Sequence[str]) -> int:
    (name,), named = flags.parse_without_page(argv, places=PLACES, named=NAMED, usage=USAGE)

    from moco_jax.data import prepare

    made = prepare.dataset(name, named["data_dir"])
    folder = prepare.folder_of(named["data_dir"])
    where = "" if named["data_dir"] is None else f" --config.data.data_dir={folder}"
    print(f"{name} {'is' if made else 'was there already'} in {folder}: --config.data.dataset={name}{where}")
    return 0


KINDS: dict[str, Callable[[Sequence[str]], int]] = {"dataset": _dataset}
