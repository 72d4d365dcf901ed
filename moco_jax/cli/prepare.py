"""`moco-jax prepare dataset NAME` and `moco-jax prepare shrink SRC DST`: flags, then one call."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence

from moco_jax import config
from moco_jax.cli import flags

USAGE = (
    "usage: moco-jax prepare dataset NAME [--data_dir=DIR]\n"
    "       moco-jax prepare shrink SRC DST [--short_side=N] [--quality=Q] [--workers=N]\n\n"
    "A data set of TFDS, downloaded and written as array_record once, to be read without TensorFlow from then on.\n"
    'Most data sets need TensorFlow for it, in a process of its own: pip install "moco_jax[prepare]".\n\n'
    "  moco-jax prepare dataset cifar10\n"
    "  moco-jax train --config=cifar10_small --workdir=runs/cifar10"
)
PLACES = {"NAME": "a name in TFDS's catalogue, such as cifar10"}
NAMED = {"data_dir": (None, "folder for data sets, as config.data.data_dir; None: TFDS's own, ~/tensorflow_datasets")}

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
    "short_side": (512.0, "pixels of the shorter side of those that are longer there"),
    "quality": (95.0, "of JPEG and lossy WebP that are made smaller, 1 to 100"),
    "workers": (float(os.cpu_count() or 1), "threads"),
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


def _shrink(argv: Sequence[str]) -> int:
    (source, target), named = flags.parse_without_page(
        argv, places=SHRINK_PLACES, named=SHRINK_NAMED, usage=SHRINK_USAGE
    )
    for name, most in (("short_side", 100_000), ("quality", 100), ("workers", 1_000)):
        if not (1 <= named[name] <= most and named[name] == int(named[name])):
            raise config.ConfigError(f"--{name} must be a whole number from 1 to {most}, not {named[name]:g}")
    how = {name: int(named[name]) for name in ("short_side", "quality")}

    from tqdm import tqdm

    from moco_jax.data import shrink

    listing, folder = shrink.plan(source, target, **how)
    counts, before, after, bad = Counter[str](), 0, 0, set()
    with tqdm(total=len(listing.paths), unit="image", disable=None) as bar:  # None: not where stderr is no terminal
        for done in shrink.copy(listing, folder, workers=int(named["workers"]), **how):
            bar.update()
            counts[done.what] += 1
            before, after = before + done.before, after + done.after
            if done.what == "bad":
                bad.add(done.name)
                tqdm.write(f"bad: {done.problem}", file=sys.stderr)
    manifest = shrink.write_manifest(source, folder, bad)
    made = ", ".join(f"{counts[what]} {words}" for what, words in SHRUNK.items() if counts[what] or what != "kept")
    sizes = f"{before / 1e6:.1f} MB before, {after / 1e6:.1f} MB after"
    print(f"{target}: {len(listing.paths) - len(bad)} images ({made}); {sizes}")
    print(f"next: --config.data.{'folder' if manifest is None else 'manifest'}={manifest or target}")
    if bad:
        raise config.ConfigError(f"{len(bad)} of {len(listing.paths)} images are not in {target}; they are named above")
    return 0


SHRUNK = {"smaller": "made smaller", "copied": "copied as they are", "kept": "there already"}
KINDS: dict[str, Callable[[Sequence[str]], int]] = {"dataset": _dataset, "shrink": _shrink}
