"""`moco-jax prepare dataset NAME` and `moco-jax prepare convert FOLDER`: flags, then one call."""

from collections.abc import Callable, Sequence

from moco_jax import config
from moco_jax.cli import flags
from moco_jax.config import ConfigError

USAGE = (
    "usage: moco-jax prepare dataset NAME [--data_dir=DIR]\n\n"
    "A data set of TFDS, downloaded and written as array_record once, to be read without TensorFlow from then on.\n"
    'Most data sets need TensorFlow for it, in a process of its own: pip install "moco_jax[prepare]".\n'
    "One that is there already, as TFRecord: moco-jax prepare convert --help\n\n"
    "  moco-jax prepare dataset cifar10\n"
    "  moco-jax train --config=cifar10_small --workdir=runs/cifar10"
)
CONVERT = (
    "usage: moco-jax prepare convert FOLDER --data_dir=DIR [--workers=4]\n\n"
    "A data set that TFDS prepared as TFRecord, written once more as array_record, in which any record can be read at\n"
    "once; without TensorFlow. Checksums are compared, each record is read back, and a call that was stopped goes on\n"
    'when it is made again. It needs one package more: pip install "moco_jax[tfrecord]".\n\n'
    "  moco-jax prepare convert ~/tensorflow_datasets/imagenet2012/5.1.0 --data_dir=/data/array_record\n"
    "  moco-jax train --config=moco_v2_r50 --config.data.data_dir=/data/array_record --workdir=runs/imagenet"
)
PLACES = {"NAME": "a name in TFDS's catalogue, such as cifar10"}
NAMED = {"data_dir": (None, "folder for data sets, as config.data.data_dir; None: TFDS's own, ~/tensorflow_datasets")}

CONVERT_PLACES = {"FOLDER": "folder of one version of a data set, the one that holds dataset_info.json"}
CONVERT_NAMED = {
    "data_dir": (
        None,
        "folder for data sets that it goes to, as NAME/VERSION; None: TFDS's own, ~/tensorflow_datasets",
    ),
    "workers": ("4", "files that are converted at once, a thread each"),
}


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


def _convert(argv: Sequence[str]) -> int:
    (source,), named = flags.parse_without_page(argv, places=CONVERT_PLACES, named=CONVERT_NAMED, usage=CONVERT)
    if not named["workers"].isdecimal() or int(named["workers"]) < 1:
        raise ConfigError(f"--workers must be a whole number above 0, not {named['workers']!r}")

    from moco_jax.data import convert, prepare

    plan, made = convert.convert(source, named["data_dir"], workers=int(named["workers"]))
    folder = prepare.folder_of(named["data_dir"])
    done = "each read back and equal" if made else "there already"
    print(f"{plan.name} is in {folder}: {plan.records:,} records in {len(plan.shards):,} files, {done}")
    where = "" if named["data_dir"] is None else f" --config.data.data_dir={folder}"
    print(f"--config.data.dataset={plan.name}{where}")
    return 0


KINDS: dict[str, Callable[[Sequence[str]], int]] = {"dataset": _dataset, "convert": _convert}
