"""`moco-jax report RUN [RUN...]`: the curves, pictures and verdict of runs, as PNG and one HTML page."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from moco_jax import places
from moco_jax.cli import compare, flags
from moco_jax.config import ConfigError, unknown
from moco_jax.reports import curves, page, pictures, runs, verdict

USAGE = (
    "usage: moco-jax report RUN [RUN...] [--output=DIR] [--bands=3,2,1] [--map=pca] [--images=500]\n\n"
    "Curves, evaluations, view pairs, nearest neighbours, a map of features and the verdict of a run, finished or\n"
    "still going, or of several side by side: PNG files and report.html, which holds them all, without a server.\n"
    "\n  moco-jax report runs/digits"
)
PLACES = {"RUN": "folder of a run; further ones are shown beside it"}
NAMED = {
    "output": (None, "folder for the report; RUN/report where not given, and ./report for several runs"),
    "bands": (None, "channels to show, from 1: one as gray, or three as red, green, blue; the first where not given"),
    "map": ("pca", "how features become points of a plane: pca or tsne"),
    "images": (500, "images encoded at most for neighbours and map, over all runs"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report that the flags ask for; returns the exit status."""
    return flags.run(_report, argv)


def _report(argv: Sequence[str]) -> int:
    given, named = flags.parse_without_page(argv, places=PLACES, named=NAMED, usage=USAGE, repeated=True)
    folders = [places.at(g) for g in given]
    if len({f.resolve() for f in folders}) < len(folders):
        raise ConfigError(f"a run is given twice: {' '.join(given)}")
    if named["map"] not in ("pca", "tsne"):
        raise unknown("--map", named["map"], ("pca", "tsne"))
    if named["images"] < 4:
        raise ConfigError(f"--images must be a whole number, 4 or more, not {named['images']}")
    read = [runs.read(folder) for folder in folders]
    if not named["output"] and len(folders) == 1 and places.is_remote(folders[0]):
        raise ConfigError(f"{folders[0]} is in a bucket: give --output, a folder of this machine for the report")
    output = Path(named["output"]) if named["output"] else (folders[0] if len(folders) == 1 else Path()) / "report"
    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output={output} is a file; give a folder")
    _choose_devices()
    labels = labels_of(folders)
    shown = [curves.Shown(n, r, compare.learning_rates(r, begun=True)) for n, r in zip(labels, read, strict=True)]
    sections = [page.Section("Curves", *curves.pictures(shown))]
    for folder, each in zip(folders, shown, strict=True):
        sections += _evaluations(folder, each, len(shown))
        title = "Images" if len(shown) == 1 else f"Images: {each.label}"
        sections.append(page.Section(title, *_images(folder, each, named, len(shown))))
    for section in sections:
        for name, why in section.missing.items():
            print(f"missing: {section.title}: {name}: {why}")
    for each in shown:
        print(f"{each.label}, step {each.run.step}/{each.run.total}: {verdict.of(each.run).text}")
    *_, html = page.write(output, shown, sections)
    print(f"report: {html}")
    return 0


def labels_of(folders: Sequence[Path]) -> list[str]:
    """What runs are called: as little of their paths as tells them apart."""
    paths = [f.resolve() for f in folders]
    for parts in range(1, max(len(p.parts) for p in paths) + 1):
        names = ["/".join(p.parts[-parts:]) for p in paths]
        if len(set(names)) == len(names):
            break
    return names


def _choose_devices() -> None:
    """JAX on the CPU, unless the environment says otherwise: the accelerator may be the run's own."""
    if "JAX_PLATFORMS" not in os.environ:
        os.environ["JAX_PLATFORMS"] = "cpu"
        print("computing on the CPU, as an accelerator may be busy with the run; JAX_PLATFORMS=cuda takes one")
    flags.prepare_environment()


def _evaluations(folder: Path, shown: curves.Shown, count: int) -> list[page.Section]:
    """A section of what evaluations left in a run's folder, or none."""
    from moco_jax.evaluation import found

    blocks, made, label = [], [], _label(shown, count)
    these, missing = found.of(folder)
    for one in these:
        blocks.append(page.words(one.name, one.text) if one.table is None else page.tabled(one.name, one.table))
        if one.confusion is not None:
            made.append(pictures.confusion(one.confusion, one.classes, one.name, label))
    title = "Evaluations" if count == 1 else f"Evaluations: {shown.label}"
    return [page.Section(title, made, missing, blocks)] if these or missing else []


def _label(shown: curves.Shown, count: int) -> str:
    """What tells the files of several runs apart."""
    return "" if count == 1 else "-" + shown.label.replace("/", "-")


def _images(
    folder: Path, shown: curves.Shown, named: dict[str, Any], count: int
) -> tuple[list[curves.Picture], dict[str, str]]:
    """Pictures of a run's images, and {title: why} of those that cannot be made."""
    from moco_jax import assembly, gallery
    from moco_jax.evaluation import loading

    run, everything = shown.run, (gallery.VIEWS, gallery.NEIGHBOURS, gallery.MAP)
    options = gallery.Options(named["bands"], named["map"], max(named["images"] // count, 4))
    label = _label(shown, count)
    if run.objects.get("source"):
        why = f"the images are an object given from Python, {run.objects['source']!r}; a command cannot open them"
        return [], dict.fromkeys(everything, why)
    try:
        parts = assembly.assemble(run.config)
    except (ConfigError, OSError) as error:
        return [], dict.fromkeys(everything, " ".join(str(error).split()))
    pictures.bands_of(named["bands"], parts.values.channels)  # what cannot be shown is an error, and no missing picture
    tasks = {gallery.VIEWS: lambda: gallery.views(parts, run.step, options, label)}
    given = [f"{n}={run.objects[n]}" for n in ("recipe", "pairs") if run.objects.get(n)]
    missing = {gallery.VIEWS: f"made by an object given from Python: {', '.join(given)}"} if given else {}
    if given:
        tasks = {}
    try:
        bank, queries = gallery.encoded(parts, loading.load(folder).trained, options.images)
    except (ConfigError, OSError) as error:
        missing |= dict.fromkeys(everything[1:], " ".join(str(error).split()))
    else:
        tasks[gallery.NEIGHBOURS] = lambda: gallery.neighbours(parts, bank, queries, options, label)
        tasks[gallery.MAP] = lambda: gallery.feature_map(bank, options, label)
    made, failed = gallery.gather(tasks)
    return made, missing | failed
