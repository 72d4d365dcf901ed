"""`moco-jax inspect PATH`: what a folder's images are, what training on them would do, and a page that does it."""

import dataclasses
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moco_jax.cli import flags
from moco_jax.config import ConfigError, Data

if TYPE_CHECKING:
    from moco_jax.data.files import Listing
    from moco_jax.data.survey import Survey

USAGE = (
    "usage: moco-jax inspect PATH [--write=PAGE.py] [--workers=N]\n\n"
    "Reads every image of a folder, a .csv manifest or an .npy array, says what they are and what training would do,\n"
    "and writes a config page for them.\n\n"
    "  moco-jax inspect photos --write=mine.py\n"
    "  moco-jax train --config=mine.py --workdir=runs/mine"
)
PLACES = {"PATH": "a folder of images, of class folders or of split folders; a .csv manifest; an .npy array"}
NAMED = {
    "write": (None, "the config page to write; an existing file is left alone"),
    "workers": (float(os.cpu_count() or 1), "threads that read images"),
}
SHOWN = 10  # names in a list


def main(argv: Sequence[str] | None = None) -> int:
    """Inspect as the flags say; returns the exit status."""
    return flags.run(_inspect, argv)


def _inspect(argv: Sequence[str]) -> int:
    (path,), named = flags.parse_without_page(argv, places=PLACES, named=NAMED, usage=USAGE)
    if not named["workers"] >= 1:
        raise ConfigError(f"--workers must be 1 or more, not {named['workers']:g}")
    page_file = None if named["write"] is None else Path(named["write"])
    if page_file is not None:
        _check_page(page_file)

    from moco_jax import suggest

    listing, found = look(path, int(named["workers"]))
    for line in describe(path, listing, found):
        print(line)
    images, good = images_of(path, listing, found)
    page, why = suggest.suggest(images)
    print("\n".join(["training would be:", *(f"  {line}" for line in suggest.plan(images, page))]))
    if page_file is not None:
        if good is not None:
            manifest = _write_manifest(_manifest_of(page_file), listing, good)
            images = dataclasses.replace(images, place={"manifest": manifest})
            page, why = suggest.suggest(images)
        header = f"MoCo on {path}: {images.records} images. Written by moco-jax inspect."
        command = f"Command  moco-jax train --config={page_file} --workdir={_workdir(page_file.stem, path)}"
        _write(page_file, suggest.text(page, why, f"{header}\n\n{command}"))
        print(f"wrote {page_file}; next: {command.removeprefix('Command  ')}")
    return 0


def look(path: str, workers: int) -> "tuple[Listing, Survey]":
    """The records of a folder, manifest or array, and what reading each showed; a progress bar on stderr."""
    from tqdm import tqdm

    from moco_jax.data import files, survey

    if _kind(path) == "array":
        listing, look_at = survey.array(path)
    else:
        listing = files.list_manifest(path) if _kind(path) == "manifest" else files.list_folder(path)

        def look_at(index: int) -> survey.Look:
            return survey.look_at_file(listing.root / listing.paths[index], listing.paths[index])

    with tqdm(total=len(listing.paths), unit="image", disable=None) as bar:  # None: not where stderr is no terminal
        found = survey.survey(listing.paths, look_at, workers=workers, seen=bar.update)
    if not found.good:
        raise ConfigError(
            f"none of the {len(found.looks)} images of {path} can be read; the first: {found.looks[0].problem}"
        )
    if found.unfit and _kind(path) == "array":
        raise ConfigError(
            f"{len(found.unfit)} images of {path} cannot be trained on; the first: {found.unfit[0].problem}"
        )
    return listing, found


def describe(path: str, listing: "Listing", found: "Survey") -> Iterator[str]:
    """What the images are, line by line; names of classes and groups in quotes, as many a name is a number."""
    from moco_jax.data import survey

    splits = Counter(listing.splits)
    left_out = f" ({listing.left_out} other files left out)" if listing.left_out else ""
    yield f"{path}: {len(found.looks)} images{left_out}"
    yield from _counted("splits", splits)
    for what, ids, names in (
        ("classes", listing.labels, listing.class_names),
        ("groups", listing.groups, listing.group_names if _grouped(listing) else []),
    ):
        if not names:
            ids = None
        counts = Counter() if ids is None else Counter(f"'{names[i]}'" for i in ids.tolist() if i >= 0)
        yield from _counted(what, counts)
    yield from _counted("formats", Counter(look.format for look in found.good))
    yield from _counted("sizes", Counter(dict(survey.sizes(found))))
    yield from _counted("stored as", found.kinds)
    if found.bad:
        share = len(found.bad) / len(found.looks)
        limit = Data().max_bad_fraction
        then = (
            f"training stops: more than data.max_bad_fraction {limit:g}" if share > limit else "training replaces them"
        )
        yield f"bad files   {len(found.bad)} images ({share:.2%}); {then}:"
        yield from (f"  {look.problem}" for look in found.bad)
    if found.unfit:
        yield f"unfit       {len(found.unfit)} images, at which training stops:"
        yield from _some([look.problem for look in found.unfit])
    untaught = usable(listing, found)[1]
    if untaught:
        yield f"left out    {untaught.total()} images of classes without a readable training image:"
        yield from _some([f"'{name}' {count}" for name, count in untaught.most_common()])
    twice = found.duplicates
    if twice:
        yield f"duplicates  {len(twice)} pictures are there more than once:"
        yield from _some([" = ".join(names) for names in twice])
    channels = found.channels()
    whole = survey.summary(found, channels)
    yield f"{'values':<12}{whole.low:g} to {whole.high:g}" + (
        f", as data.channels={channels} converts" if channels else ""
    )
    for name, values in (("mean", whole.mean), ("std", whole.std)):
        yield f"{name:<12}{'  '.join(f'{v:.5g}' for v in values)}  (per channel, each image counting alike)"


def _counted(what: str, counts: "Counter[str]") -> Iterator[str]:
    """One line: how many there are, the commonest with their counts, and the rarest."""
    if not counts:
        yield f"{what:<12}none"
        return
    ordered = counts.most_common()
    listed = ", ".join(f"{name} {count}" for name, count in ordered[:SHOWN])
    rest = f", ... the smallest {ordered[-1][0]} {ordered[-1][1]}" if len(ordered) > SHOWN else ""
    yield f"{what:<12}{len(ordered)}: {listed}{rest}"


def _some(lines: list[str]) -> Iterator[str]:
    yield from (f"  {line}" for line in lines[:SHOWN])
    if len(lines) > SHOWN:
        yield f"  ... and {len(lines) - SHOWN} more"


def usable(listing: "Listing", found: "Survey") -> "tuple[list[int], Counter[str]]":
    """The records that a manifest may name, and by class how many others can be read.

    Those are of classes that lost all their images in the training split: nothing would teach them.
    """
    from moco_jax.data import files

    good = [i for i, one in enumerate(found.looks) if not one.problem]
    labels = [-1] * len(found.looks) if listing.labels is None else listing.labels.tolist()
    taught = {labels[i] for i in good if listing.splits[i] == files.TRAIN and labels[i] >= 0}
    untaught = [i for i in good if taught and labels[i] >= 0 and labels[i] not in taught]
    return sorted(set(good) - set(untaught)), Counter(listing.class_names[labels[i]] for i in untaught)


def images_of(path: str, listing: "Listing", found: "Survey") -> tuple[Any, list[int] | None]:
    """What a page is made for; and the records that it may use, None where all may be.

    The values are those of the training split.
    """
    from moco_jax import suggest
    from moco_jax.data import files, survey

    good, _ = usable(listing, found)
    train = survey.Survey([found.looks[i] for i in good if listing.splits[i] == files.TRAIN])
    if not train.looks:
        raise ConfigError(
            f"{path} has no images in a split {files.TRAIN!r}, only {', '.join(sorted(set(listing.splits)))}"
        )
    channels = found.channels()
    sizes = {one.size for one in train.looks}
    images = suggest.Images(
        place={_kind(path): str(Path(path).expanduser().resolve())},
        records=len(train.looks),
        summary=survey.summary(train, channels),
        channels=channels,
        shape=sizes.pop() if len(sizes) == 1 else None,
        shorter=sorted(min(one.size) for one in train.looks)[len(train.looks) // 2],
        classes=0 if listing.labels is None else len({listing.labels[i] for i in good} - {-1}),
        splits=Counter(listing.splits[i] for i in good),
        labelled=frozenset(s for s in set(listing.splits) if _all_labelled(listing, s)),
        grouped=_grouped(listing),
        workers=os.cpu_count() or 1,
    )
    return images, good if found.bad or found.unfit else None


def _all_labelled(listing: "Listing", split: str) -> bool:
    return listing.labels is not None and all(
        label >= 0 for label, s in zip(listing.labels.tolist(), listing.splits, strict=True) if s == split
    )


def _grouped(listing: "Listing") -> bool:
    """Whether groups say more than classes: a class folder is the group of its images too."""
    return listing.groups is not None and set(listing.group_names) != set(listing.class_names)


def _kind(path: str) -> str:
    """The key of data that takes such a path."""
    return {".csv": "manifest", ".npy": "array"}.get(Path(path).suffix.lower(), "folder")


def _workdir(name: str, path: str) -> str:
    """runs/NAME from here; beside a folder of images that we are in, as pictures of a run would be taken for images."""
    images = Path(path).expanduser().resolve()
    workdir = Path("runs", name)
    inside = images.is_dir() and workdir.resolve().is_relative_to(images)
    return os.path.relpath(images.parent / workdir) if inside else str(workdir)


def _manifest_of(page: Path) -> Path:
    """What is written beside a page where some images cannot be read: not PAGE.csv, which may be the user's own."""
    return page.with_name(f"{page.stem}_readable.csv")


def _check_page(page: Path) -> None:
    """Raises ConfigError for a page that cannot be written, before an hour of reading."""
    if page.suffix != ".py":
        raise ConfigError(f"--write={page}: a config page is a Python file, such as {page.with_suffix('.py')}")
    for file in (page, _manifest_of(page)):
        if file.exists():
            raise ConfigError(f"--write={page}: {file} is there already and is left alone; give another name")
    if not page.resolve().parent.is_dir():
        raise ConfigError(f"--write={page}: there is no folder {page.parent}")
    if not os.access(page.resolve().parent, os.W_OK):
        raise ConfigError(f"--write={page}: {page.resolve().parent} may not be written to; give another folder")


def _write_manifest(file: Path, listing: "Listing", good: list[int]) -> str:
    """A manifest of some records; returns its path."""
    import csv
    import io

    folder, root = file.resolve().parent, listing.root.resolve()
    # A link stays the record that it is: resolved, it would be named twice where its target is a record too.
    columns = {"path": [os.path.relpath(root / listing.paths[i], folder) for i in good]}
    for name, ids, names in (
        ("label", listing.labels, listing.class_names),
        ("group", listing.groups, listing.group_names),
    ):
        if ids is not None:
            columns[name] = [names[ids[i]] if ids[i] >= 0 else "" for i in good]
    columns["split"] = [listing.splits[i] for i in good]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    _write(file, text.getvalue())
    print(f"wrote {file}: the {len(good)} images that can be used")
    return str(file.resolve())


def _write(file: Path, text: str) -> None:
    """All of the text or nothing; ConfigError for names of files that are no text."""
    try:
        encoded = text.encode()
    except UnicodeEncodeError as error:
        name = text[: error.end].splitlines()[-1] + text[error.end :].split("\n")[0]
        raise ConfigError(f"{file} cannot be written: {name!a} is no text in UTF-8; rename that file") from None
    part = file.with_name(f".{file.name}.part")
    part.write_bytes(encoded)
    part.replace(file)
