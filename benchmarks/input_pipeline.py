"""How many images a second the host makes ready, beside direct loops over libraries, as JSON.

    python -m benchmarks.input_pipeline FOLDER --output=benchmarks/results/input_pipeline.json

FOLDER is a tree of JPEG files; with --kind they are first written as others (`benchmarks/converted.py`): photos of 12
megapixels (large), 16-bit PNG (png16), TIFF of 13 bands of 16 bits (tiff13). Every loop reads files, and takes the same
ones in turn within each repeat, on one core (the process is bound to it) and, ours, on two; ratios are of loops of one
repeat, and their medians are kept. None of the loops before "ours" has anything of this project in it:

- `pillow_v2`: what the original does: Pillow decodes, two views with all of v2's transforms as torchvision has them on
  Pillow's images, to normalised floats (8 bits only)
- `decode`: the decoder of a library (OpenCV; tifffile) and nothing else: the floor
- `decode_and_crop`: the same, and two random resized crops by Pillow
- `ours`: `data.loader.batches` as training calls it, from a folder, ready for `put_batch`; once it runs
- `ours_for_the_device`: the same with `data.canvas`: the device cuts the crops
"""

import functools
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from benchmarks import converted, output
from moco_jax.cli import flags

NAMED = {
    "repeats": (9, "of each loop; medians count"),
    "images": (256, "per repeat"),
    "batch_size": (64, "of ours"),
    "kind": ("jpeg", "large, png16 or tiff13: what the files are written as first"),
    "size": (224, "of a view, in pixels"),
    "canvas": (512, "pixels a side, where the device cuts"),
    "output": (None, "file for the JSON, besides stdout"),
}
USAGE = "usage: python -m benchmarks.input_pipeline FOLDER [--repeats=N] [--images=N] [--size=S] [--output=FILE]"
ENTRIES = 100_000  # of ours: the files again and again
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def random_box(height: int, width: int, rng: random.Random) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of torchvision's RandomResizedCrop of scale 0.2 to 1."""
    for _ in range(10):
        area, ratio = height * width * rng.uniform(0.2, 1), np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if w <= width and h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            return left, top, left + w, top + h
    side = min(height, width)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def jitter(image: Image.Image, rng: random.Random) -> Image.Image:
    """torchvision's ColorJitter(0.4, 0.4, 0.4, 0.1) on a Pillow image."""

    def hue(image: Image.Image) -> Image.Image:
        h, s, v = image.convert("HSV").split()
        shifted = np.asarray(h, np.uint8) + np.uint8(int(rng.uniform(-0.1, 0.1) * 255) % 256)
        return Image.merge("HSV", (Image.fromarray(shifted), s, v)).convert("RGB")

    steps: list[Callable[[Image.Image], Image.Image]] = [hue]
    for kind in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        steps.append(lambda image, kind=kind: kind(image).enhance(rng.uniform(0.6, 1.4)))
    rng.shuffle(steps)
    return functools.reduce(lambda image, step: step(image), steps, image)


def pillow_v2(path: Path, size: int, rng: random.Random) -> list[np.ndarray]:
    """Two views (3, size, size) of float32, as the original makes them."""
    with path.open("rb") as file:
        image = Image.open(file).convert("RGB")
    views = []
    for _ in range(2):
        view = image.crop(random_box(image.height, image.width, rng)).resize((size, size), Image.Resampling.BILINEAR)
        if rng.random() < 0.8:
            view = jitter(view, rng)
        if rng.random() < 0.2:
            view = ImageOps.grayscale(view).convert("RGB")
        if rng.random() < 0.5:
            view = view.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
        if rng.random() < 0.5:
            view = ImageOps.mirror(view)
        views.append((((np.asarray(view, np.float32) / 255) - MEAN) / STD).transpose(2, 0, 1).copy())
    return views


def decode(path: Path) -> np.ndarray:
    """The pixels of a file, and nothing else."""
    if path.suffix == ".tif":
        import tifffile

        return tifffile.imread(path)
    how = cv2.IMREAD_UNCHANGED if path.suffix == ".png" else cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), how)


def decode_and_crop(path: Path, size: int, rng: random.Random) -> list[np.ndarray]:
    """Two random resized crops (size, size, C) of one decoding, in its dtype; 16 bits band by band, as floats."""

    def resized(pixels: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))

    image = decode(path)
    crops = []
    for _ in range(2):
        left, top, right, bottom = random_box(*image.shape[:2], rng)
        cut = image[top:bottom, left:right]
        if cut.dtype == np.uint8:
            crops.append(resized(cut))
        else:
            bands = [resized(band) for band in np.moveaxis(cut, 2, 0).astype(np.float32)]
            crops.append(np.rint(np.stack(bands, 2)).astype(cut.dtype))
    return crops


def ours(
    folder: str, size: int, batch_size: int, images: int, workers: int, canvas: int, *, channels: int | None
) -> Callable[[], float]:
    """A call makes some batches ready, each repeat the next ones; images a second, once it runs."""
    from moco_jax import config
    from moco_jax.data import loader, opening, sources
    from moco_jax.views.recipes import RECIPES

    opened = opening.open_split(config.Data(dataset=None, folder=folder, channels=channels), "train")
    # An epoch's order takes 40 ms however few its images are, which would count here and not in a real data set.
    source = sources.Subset(opened, np.arange(ENTRIES) % len(opened))
    recipe = RECIPES["moco_v2"]
    steps, warm = max(1, images // batch_size), 4 + workers
    done = 0

    def go() -> float:
        nonlocal done
        found = loader.batches(
            source,
            [view.crop for view in recipe],
            path="streamed",
            seed=0,
            batch_size=batch_size,
            positions=np.arange(batch_size),
            first_step=done,
            last_step=done + warm + steps,
            size=size,
            workers=workers,
            canvas=canvas,
        )
        done += warm + steps
        came = [time.perf_counter() for _ in found]  # nobody else takes any, so each comes when it is made
        return steps * batch_size / (came[-1] - came[warm - 1])

    return go


def over(paths: Sequence[Path], images: int, one: Callable[[Path], object]) -> Callable[[], float]:
    """A call takes the next `images` files of an endless round, one by one; images a second."""
    at = 0

    def go() -> float:
        nonlocal at
        begun = time.perf_counter()
        for i in range(at, at + images):
            one(paths[i % len(paths)])
        at += images
        return images / (time.perf_counter() - begun)

    return go


def timed(go: Callable[[], float], cores: set[int]) -> float:
    """Images a second on some cores."""
    os.sched_setaffinity(0, cores)
    cv2.setNumThreads(1)
    return go()


def measure(
    folder: str, kind: str, *, repeats: int, images: int, batch_size: int, size: int, canvas: int
) -> dict[str, Any]:
    """All loops, in turn, some times."""
    paths = sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in converted.SUFFIXES[kind])
    allowed = sorted(os.sched_getaffinity(0))
    one, two = {allowed[0]}, set(allowed[:2])
    rng = random.Random(0)
    channels = 3 if kind in ("jpeg", "large") else None
    mine = functools.partial(ours, folder, size, batch_size, images, channels=channels)
    loops: dict[str, tuple[Callable[[], float], set[int]]] = {
        "decode": (over(paths, images, decode), one),
        "decode_and_crop": (over(paths, images, lambda p: decode_and_crop(p, size, rng)), one),
        "ours": (mine(1, 0), one),
        "ours_for_the_device": (mine(1, canvas), one),
    }
    if channels:
        loops["pillow_v2"] = (over(paths, max(1, images // 4), lambda p: pillow_v2(p, size, rng)), one)
    if len(two) == 2:
        loops["ours_on_two_cores"] = (mine(2, 0), two)
        loops["ours_for_the_device_on_two_cores"] = (mine(2, canvas), two)
    found: dict[str, list[float]] = {name: [] for name in loops}
    for repeat in range(repeats + 1):  # the first one fills caches
        for name, (go, cores) in loops.items():
            speed = timed(go, cores)
            if repeat:
                found[name].append(speed)
    os.sched_setaffinity(0, allowed)

    def ratio(a: str, b: str) -> dict[str, float]:
        each = sorted(x / y for x, y in zip(found[a], found[b], strict=True))
        return {"median": round(statistics.median(each), 3), "low": round(each[0], 3), "high": round(each[-1], 3)}

    pairs = [("decode_and_crop", "decode"), ("ours", "decode"), ("ours", "decode_and_crop")]
    pairs += [("ours_for_the_device", "decode"), ("ours_for_the_device", "ours")]
    pairs += [("pillow_v2", "decode"), ("ours", "pillow_v2")] * ("pillow_v2" in loops)
    pairs += [(f"{name}_on_two_cores", name) for name in ("ours", "ours_for_the_device")] * (len(two) == 2)
    return {
        "kind": kind,
        "files": len(paths),
        "mean_bytes": round(statistics.mean(p.stat().st_size for p in paths)),
        "size": size,
        "canvas": canvas,
        "batch_size": batch_size,
        "images_per_second": {name: round(statistics.median(speeds), 1) for name, speeds in found.items()},
        "ratios": {f"{a} / {b}": ratio(a, b) for a, b in pairs},
    }


def main() -> int:
    """Measure as the flags say."""
    return flags.run(_run, sys.argv[1:])


def _run(argv: list[str]) -> int:
    (folder,), named = flags.parse_without_page(
        argv, places={"FOLDER": "a tree of JPEG files"}, named=NAMED, usage=USAGE
    )
    numbers = {name: named[name] for name in ("repeats", "images", "batch_size", "size", "canvas")}
    with tempfile.TemporaryDirectory() as place:
        if named["kind"] != "jpeg":
            converted.write(Path(folder), Path(place), named["kind"])
            folder = place
        output.keep(measure(folder, named["kind"], **numbers), named["output"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
