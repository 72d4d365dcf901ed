"""What torchvision makes of some pictures, for `test_augmentation.py`: computed, and stored for want of torch.

Run with torch and torchvision: python -m tests.parity.make_augmentation
"""

import itertools
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from PIL import Image, ImageFilter, ImageOps

from tests.parity import torchvision_cpu

STORED = Path(__file__).parent / "golden" / "augmentation.npz"
STEP = 7  # of 224-pixel results every seventh row and column is stored

# What each operation is called with; affine: angle, shift (x, y), scale, shear.
VALUES: dict[str, tuple[Any, ...]] = {
    "brightness": (0.0, 0.6, 1.0, 1.4),
    "contrast": (0.0, 0.6, 1.0, 1.4),
    "saturation": (0.0, 0.6, 1.0, 1.4),
    "hue": (-0.37, -0.1, 0.0, 0.07, 0.4),
    "grayscale": (None,),
    "blur": (0.1, 0.3, 0.7, 1.0, 1.57, 2.0),
    "solarize": (None,),
    "flip": (None,),
    "affine": ((0, (1, 2), 1.0, 0), (15, (2, -1), 0.9, 5), (-7, (0, 0), 1.1, -3), (40, (3, 3), 1.2, 20)),
}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Images in which most tries of a random crop fail: height, width, scale of the area.
HARD, HARD_SCALE, HARD_DRAWS = (8, 24), (0.25, 1.0), 40_000


def pictures() -> dict[str, np.ndarray]:
    """Photos, two of 224 and one of 32 pixels, and a colourful drawing with noise of 32: (S, S, 3) uint8 each."""
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    y, x = np.mgrid[0:32, 0:32] / 32
    smooth = np.stack([0.5 + 0.5 * np.sin(6 * x + 2 * y), 0.5 + 0.5 * np.cos(5 * y), 0.3 + 0.6 * x * y], -1)
    noisy = np.clip(smooth + 0.1 * np.random.default_rng(0).standard_normal(smooth.shape), 0, 1)
    return {
        "china": china[100:324, 200:424],
        "flower": flower[150:374, 250:474],
        "petals": flower[180:212, 300:332],
        "drawing": (noisy * 255).round().astype(np.uint8),
    }


def draws() -> np.ndarray:
    """(26, 5, 9) float32 in [0, 1): what row and place in the recipe draw; all 24 orders of the jitter, then none."""
    u = np.random.default_rng(1).random((26, 4, 9), np.float32)
    u[:24, :, 4:8] = (np.array(list(itertools.permutations(range(4))), np.float32) / 4)[:, None]
    u[:24, :, 8] *= 0.8
    u[24:, :, 8] = 0.9
    return np.concatenate([u, np.random.default_rng(3).random((26, 1, 9), np.float32)], 1)


def operations(tv: Any) -> dict[str, Any]:
    """(picture, value) -> picture, by torchvision; the blur as in the released code, which calls Pillow."""
    f = tv.functional
    bilinear = tv.InterpolationMode.BILINEAR
    return {
        "brightness": f.adjust_brightness,
        "contrast": f.adjust_contrast,
        "saturation": f.adjust_saturation,
        "hue": f.adjust_hue,
        "grayscale": lambda p, _: f.rgb_to_grayscale(p, num_output_channels=3),
        "blur": lambda p, sigma: p.filter(ImageFilter.GaussianBlur(radius=sigma)),
        "solarize": lambda p, _: f.solarize(p, 128),
        "flip": lambda p, _: f.hflip(p),
        "affine": lambda p, v: f.affine(p, v[0], list(v[1]), v[2], [v[3], 0.0], interpolation=bilinear),
    }


def released(tv: Any) -> dict[str, list[Any]]:
    """The lists of the released code after the crop, as written there; its GaussianBlur as (low, high).

    MoCo v3's is that of its second view, which has all that its first has.
    """
    jitter = tv.ColorJitter(0.4, 0.4, 0.4, 0.1)
    return {
        "moco_v1": [tv.RandomGrayscale(p=0.2), tv.ColorJitter(0.4, 0.4, 0.4, 0.4), tv.RandomHorizontalFlip()],
        "moco_v2": [
            tv.RandomApply([jitter], p=0.8),
            tv.RandomGrayscale(p=0.2),
            tv.RandomApply([Blur(0.1, 2.0)], p=0.5),
            tv.RandomHorizontalFlip(),
        ],
        "moco_v3": [
            tv.RandomApply([tv.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            tv.RandomGrayscale(p=0.2),
            tv.RandomApply([Blur(0.1, 2.0)], p=0.1),
            tv.RandomApply([solarize], p=0.2),
            tv.RandomHorizontalFlip(),
        ],
        "cifar_demo": [tv.RandomHorizontalFlip(p=0.5), tv.RandomApply([jitter], p=0.8), tv.RandomGrayscale(p=0.2)],
    }


def solarize(picture: Any) -> Any:
    """MoCo v3's Solarize."""
    return ImageOps.solarize(picture)


class Blur:
    """The released code's GaussianBlur, whose random number is told."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high, self.u = low, high, 0.0

    def __call__(self, picture: Any) -> Any:
        return picture.filter(ImageFilter.GaussianBlur(radius=self.low + (self.high - self.low) * self.u))


def composed(tv: Any, transforms: list[Any], picture: Any, u: np.ndarray) -> np.ndarray:
    """The transforms one after another, each with its row of u (places, 9) in place of torch's random numbers."""
    import torch

    def get_params(*ranges: Any) -> tuple[Any, ...]:
        """Permutation and factors; the ranges are torchvision's own."""
        factors = [low + (high - low) * float(row[k]) for k, (low, high) in enumerate(ranges)]
        return (torch.from_numpy(np.argsort(row[4:8])), *factors)

    for transform, row in zip(transforms, u, strict=False):
        inner = getattr(transform, "transforms", [transform])[0]
        if isinstance(inner, Blur):
            inner.u = float(row[0])
        coin = float(row[{tv.ColorJitter: 8, Blur: 1}.get(type(inner), 0)])
        with (
            mock.patch.object(torch, "rand", lambda *_, c=coin: torch.tensor([c])),
            mock.patch.object(tv.ColorJitter, "get_params", staticmethod(get_params)),
        ):
            picture = transform(picture)
    return np.asarray(picture)


def hard_boxes(tv: Any) -> np.ndarray:
    """How often torchvision's RandomResizedCrop draws a height and width: (H + 1, W + 1)."""
    import torch

    torch.manual_seed(0)
    counts = np.zeros((HARD[0] + 1, HARD[1] + 1), np.int32)
    picture = Image.new("L", HARD[::-1])
    for _ in range(HARD_DRAWS):
        _, _, height, width = tv.RandomResizedCrop.get_params(picture, list(HARD_SCALE), [3 / 4, 4 / 3])
        counts[height, width] += 1
    return counts


def expected(tv: Any, images: dict[str, np.ndarray], u: np.ndarray) -> dict[str, np.ndarray]:
    """operation/picture -> (values, S, S, 3); recipe/picture -> (rows, S, S, 3), uint8; normalize -> (32, 32, 3)."""
    opened = {name: Image.fromarray(pixels) for name, pixels in images.items()}
    out = {
        f"{op}/{name}": np.stack([np.asarray(function(picture, v)) for v in VALUES[op]])
        for op, function in operations(tv).items()
        for name, picture in opened.items()
    }
    for recipe, transforms in released(tv).items():
        for name, picture in (("petals", opened["petals"]), ("china", opened["china"])):
            rows = u if picture.size[0] == 32 else u[::8]
            out[f"{recipe}/{name}"] = np.stack([composed(tv, transforms, picture, row) for row in rows])
    normalize = tv.Compose([tv.ToTensor(), tv.Normalize(MEAN, STD)])
    return out | {"normalize": normalize(opened["petals"]).permute(1, 2, 0).numpy()}


def thinned(values: np.ndarray) -> np.ndarray:
    """What is stored of a result: all pixels of few small images, every second row of the many of a recipe."""
    if values.ndim == 4 and values.shape[1] == 224:
        return values[:, ::STEP, ::STEP]
    return values[:, ::2] if len(values) == len(draws()) else values


def main() -> None:
    """Write the stored values anew."""
    torchvision = torchvision_cpu.import_torchvision()
    if torchvision is None:
        raise SystemExit("torch and torchvision are needed")
    tv = torchvision.transforms
    images, u = pictures(), draws()
    results = {name: thinned(values) for name, values in expected(tv, images, u).items()}
    STORED.parent.mkdir(exist_ok=True)
    np.savez_compressed(STORED, draws=u, hard_boxes=hard_boxes(tv), **images, **results)


if __name__ == "__main__":
    main()
