"""`moco-jax prepare dataset NAME`, `convert FOLDER` and `shrink SRC DST`: flags, then one call."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence

from moco_jax import config
from moco_jax.cli import flags
from moco_jax.config import ConfigError

USAGE = (
    "usage: moco-jax prepare dataset NAME [--data_dir=DIR]\n"
    "       moco-jax prepare convert FOLDER [--data_dir=DIR] [--workers=N]\n"
    "       moco-jax prepare shrink SRC DST [--short_side=N] [--quality=Q] [--workers=N]\n\n"
    "A data set of TFDS, downloaded and written as array_record once, to be read without TensorFlow from then on.\n"
    'Most data sets need TensorFlow for it, in a process of its own: pip install "moco_jax[prepare]".\n'
    "One that is there already, as TFRecord: moco-jax prepare convert --help\n\n"
    "  moco-jax prepare dataset cifar10\n"
    "  moco-jax train --config=cifar10_small --workdir=runs/cifar10"
)
CONVERT = (
    "usage: moco-jax prepare convert FOLDER [--data_dir=DIR] [--workers=N]\n\n"
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
    "workers": (4, "files that are converted at once, a thread each"),
}
SHRINK_USAGE = (
    "usage: moco-jax prepare shrink SRC DST [--short_side=N] [--quality=Q] [--workers=N]\n\n"
    "A copy of a folder of images (or of a .csv manifest and its images) at training size: the same tree, names and\n"
    "formats. Larger images are made smaller, others are copied byte for byte. The same command goes on with a copy\n"
    "that was stopped. Bad files are named and left out, and the exit status is then 1.\n\n"
    "  moco-jax prepare shrink photos photos_512\n"
    "  moco-jax train --config=photos --config.data.folder=photos_512 --workdir=runs/photos"
)
SHRINK_PLACES = {
    "SRC": "a folder of images, of class folders or of split folders; a .csv manifest",
    "DST": "the folder for the copy, new, empty or begun earlier",
}
SHRINK_NAMED = {
    "short_side": (512, "pixels of the shorter side of those that are longer there"),
    "quality": (95, "of JPEG and lossy WebP that are made smaller, 1 to 100"),
    "workers": (os.cpu_count() or 1, "threads"),
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
    if not named["workers"]:
        raise ConfigError("--workers must be a whole number above 0, not 0")

    from moco_jax.data import convert, prepare

    plan, made = convert.convert(source, named["data_dir"], workers=named["workers"])
    folder = prepare.folder_of(named["data_dir"])
    done = "each read back and equal" if made else "there already"
    print(f"{plan.name} is in {folder}: {plan.records:,} records in {len(plan.shards):,} files, {done}")
    where = "" if named["data_dir"] is None else f" --config.data.data_dir={folder}"
    print(f"--config.data.dataset={plan.name}{where}")
    return 0


def _shrink(argv: Sequence[str]) -> int:
    (source, target), named = flags.parse_without_page(
        argv, places=SHRINK_PLACES, named=SHRINK_NAMED, usage=SHRINK_USAGE
    )
    for name, most in (("short_side", 100_000), ("quality", 100), ("workers", 1_000)):
        if not 1 <= named[name] <= most:
            raise config.ConfigError(f"--{name} must be a whole number from 1 to {most}, not {named[name]}")
    how = {name: named[name] for name in ("short_side", "quality")}

    from tqdm import tqdm

    from moco_jax.data import shrink

    counts, before, after, bad = Counter[str](), 0, 0, set()
    with shrink.begun(source, target, **how) as (listing, folder):
        with tqdm(total=len(listing.paths), unit="image", disable=None) as bar:  # None: not where stderr is no terminal
            for done in shrink.copy(listing, folder, workers=named["workers"], **how):
                bar.update()
                counts[done.what] += 1
                before, after = before + done.before, after + done.after
                if done.what == "bad":
                    bad.add(done.name)
                    tqdm.write(f"bad: {done.problem}", file=sys.stderr)
        manifest = shrink.write_manifest(source, folder, bad)
        more = shrink.left_over(listing, folder)
    made = ", ".join(f"{counts[what]} {words}" for what, words in SHRUNK.items() if counts[what] or what != "kept")
    sizes = f"{before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after"
    print(f"{target}: {len(listing.paths) - len(bad)} images ({made}); {sizes}")
    print(f"next: --config.data.{'folder' if manifest is None else 'manifest'}={manifest or target}")
    wrong = []
    if bad:
        wrong.append(f"{len(bad)} of {len(listing.paths)} images are not in {target}; they are named above")
    if more:
        some = ", ".join(more[:3]) + (", ..." if len(more) > 3 else "")
        wrong.append(f"{target} holds {len(more)} images that {source} does not list: {some}; remove them")
    if wrong:
        raise config.ConfigError("; ".join(wrong))
    return 0


SHRUNK = {"smaller": "made smaller", "copied": "copied as they are", "kept": "there already"}
KINDS: dict[str, Callable[[Sequence[str]], int]] = {"dataset": _dataset, "convert": _convert, "shrink": _shrink}
