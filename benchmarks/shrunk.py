"""What `moco-jax prepare shrink` changes: bytes, decoding speed and random resized crops, as JSON.

    python -m benchmarks.shrunk FOLDER --short_side=512 --megapixels=12 --images=12 --output=FILE.json

The images of a folder, as they are or first enlarged to so many megapixels (real photos of that size are sharper).
Speed is of one thread, in processor time, so that other work on the machine does not count; the median of `repeats`.
Crops are MoCo v2's, 224 pixels, 8 of each image that was made smaller: mean absolute difference between one from the
original and one from the copy, in levels of 255. `drawn`: the box is drawn for either size, in whole pixels, as in
training. `same_place`: the copy's box is that of the original to the fraction of a pixel. `half_pixel`, to compare
with: both from the original, half a pixel of the view apart.
"""

import io
import statistics
import sys
import time
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import output
from moco_jax.cli import flags
from moco_jax.data import crops, files, pixels, smaller

NAMED = {
    "short_side": (512, "as of `moco-jax prepare shrink`"),
    "quality": (float(smaller.QUALITY), "as there"),
    "megapixels": (0.0, "enlarge every image to so many first; 0: as they are"),
    "images": (256, "how many, from the first"),
    "repeats": (3, "of the timing; the median counts"),
    "output": (None, "file for the JSON, besides stdout"),
}
SIZE, SCALE, RATIO, VIEWS = 224, (0.2, 1.0), (3 / 4, 4 / 3), 8


def measure(encoded: list[bytes], *, short_side: int, quality: int, repeats: int) -> dict[str, Any]:
    """Figures of images as they are and as they are copied."""
    start = time.process_time()
    made = [smaller.smaller(e, "image", short_side=short_side, quality=quality) for e in encoded]
    seconds = time.process_time() - start
    after = [e if m is None else m for e, m in zip(encoded, made, strict=True)]
    pairs = [(e, m) for e, m in zip(encoded, made, strict=True) if m is not None]
    speeds = [(_speed(encoded), _speed(after)) for _ in range(repeats)]
    found = [differences(pixels.decode(e, "e"), pixels.decode(m, "m"), i) for i, (e, m) in enumerate(pairs)]
    return {
        "images": len(encoded),
        "made_smaller": len(pairs),
        "bytes": [sum(map(len, encoded)), sum(map(len, after))],
        "bytes_of_those_made_smaller": [sum(len(e) for e, _ in pairs), sum(len(m) for _, m in pairs)],
        "decoded_per_second": [statistics.median(s) for s in zip(*speeds, strict=True)],
        "shrunk_per_second": len(encoded) / seconds,
        "difference": {name: float(np.mean([f[name] for f in found])) for name in (found[0] if found else ())},
    }


def _speed(encoded: list[bytes]) -> float:
    start = time.process_time()
    for one in encoded:
        pixels.decode(one, "image")
    return len(encoded) / (time.process_time() - start)


def differences(original: np.ndarray, copy: np.ndarray, record: int) -> dict[str, float]:
    """Mean over the views of one image, (H, W, C) and (h, w, C)."""
    found: dict[str, list[float]] = {"drawn": [], "same_place": [], "half_pixel": []}
    scale = np.array([copy.shape[i] / original.shape[i] for i in (1, 0, 1, 0)])
    for stream in crops.words(0, 0, [record], VIEWS)[0]:
        box, other = (crops.draw_box(stream, *image.shape[:2], SCALE, RATIO) for image in (original, copy))
        wanted = crops.random_resized_crop(original, box, SIZE)
        found["drawn"].append(_apart(wanted, crops.random_resized_crop(copy, other, SIZE)))
        place = np.array([box.left, box.top, box.left + box.width, box.top + box.height], float)
        found["same_place"].append(_apart(wanted, _cut(copy, place * scale)))
        step = np.array([box.width, box.height] * 2) / SIZE / 2  # half a pixel of the view
        inside = np.minimum(place + step, np.array([original.shape[1], original.shape[0]] * 2))
        found["half_pixel"].append(_apart(wanted, _cut(original, inside)))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _cut(image: np.ndarray, place: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image if image.shape[2] > 1 else image[:, :, 0])
    cut = picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR, box=tuple(place.tolist()))
    return np.asarray(cut).reshape(SIZE, SIZE, -1)


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b).mean())


def enlarged(encoded: bytes, megapixels: float) -> bytes:
    """A JPEG of the same picture with so many pixels."""
    with Image.open(io.BytesIO(encoded)) as image:
        factor = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
        large = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
        out = io.BytesIO()
        large.save(out, "JPEG", quality=90)
    return out.getvalue()


def main() -> int:
    """Measure what the flags say."""
    return flags.run(_run, sys.argv[1:])


def _run(argv: list[str]) -> int:
    (folder,), named = flags.parse_without_page(argv, places={"FOLDER": "of images"}, named=NAMED, usage=__doc__ or "")
    listing = files.list_folder(folder)
    encoded = [(listing.root / path).read_bytes() for path in listing.paths[: named["images"]]]
    if named["megapixels"]:
        encoded = [enlarged(one, named["megapixels"]) for one in encoded]
    how = {name: named[name] for name in ("short_side", "quality", "repeats")}
    given = {name: named[name] for name in ("short_side", "quality", "megapixels")}
    output.keep({**given, **measure(encoded, **how)}, named["output"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
