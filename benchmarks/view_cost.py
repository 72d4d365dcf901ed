"""What the views of one image cost on the device, beside a step of ResNet-50, by XLA's count, as JSON.

    python -m benchmarks.view_cost --output=benchmarks/results/view_cost.json

FLOPs and bytes are those of the compiled programs of the platform at hand: cutting both crops of a canvas
(`data.canvas`), and everything that comes after (colours, blur, solarizing, mirroring, normalising) for both views. A
step takes 32.5 GFLOP an image (two forward passes and one backward), and in bfloat16 448 MB, if each activation is
written and read as often as it must be.
"""

import sys
from collections.abc import Callable
from typing import Any

from benchmarks import output
from moco_jax.cli import flags

NAMED = {
    "images": (8, "in the programs"),
    "size": (224, "pixels of a view"),
    "canvas": (512, "pixels of a canvas"),
    "recipe": ("moco_v2", "of the views"),
    "output": (None, "file for the JSON, besides stdout"),
}
USAGE = "usage: python -m benchmarks.view_cost [--images=N] [--size=S] [--canvas=S] [--recipe=NAME] [--output=FILE]"
STEP = {"flops": 32.5e9, "bytes": 448e6}  # of MoCo with ResNet-50 at 224 pixels, for each image


def measure(*, images: int, size: int, canvas: int, recipe: str) -> dict[str, Any]:
    """FLOPs and bytes for each image, and their shares of a step's."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from moco_jax import views
    from moco_jax.views import augment
    from moco_jax.views.recipes import RECIPES, GaussianBlur

    made = views.make(
        RECIPES[recipe], size=size, low=0.0, high=255.0, mean=(0.5,) * 3, std=(0.2,) * 3, dtype=jnp.bfloat16
    )
    rows, key = jnp.arange(images), jax.random.key(0)
    batch = {
        "canvas": (np.zeros((images, canvas, canvas, 3), np.uint8),),
        "boxes": np.full((images, made.count, 4), canvas // 2, np.int32),
    }
    raw = tuple(np.zeros((images, size, size, 3), np.uint8) for _ in range(made.count))
    reaches = [op.high for view in RECIPES[recipe] for op in view.ops if isinstance(op, GaussianBlur)]

    def blurred(x: Any) -> Any:
        def one(image: Any, high: float) -> Any:
            return augment.adjust_blur(image, jnp.float32(high), widest=high, whole=True)

        return [
            jax.vmap(lambda image, high=high: one(image, high))(view.astype(jnp.float32))
            for view, high in zip(x, reaches, strict=False)
        ]

    counted = {
        "crops": _counted(lambda b: made.raw(b, {}, rows, key), batch, images),
        "augmentation": _counted(lambda x: [made.augment(v, rows, key, i) for i, v in enumerate(x)], raw, images),
    }
    # XLA counts one turn of a loop, and a blur has loops of three.
    for name, one_turn in _counted(blurred, raw, images).items():
        counted["augmentation"][name] += 2 * one_turn
    return {
        "platform": jax.default_backend(),
        "jax": jax.__version__,
        "recipe": recipe,
        "size": size,
        "canvas": canvas,
        "bytes_sent": {"two crops": made.count * size**2 * 3, "canvas": canvas**2 * 3},
        "per_image": counted,
        "share_of_a_step": {
            part: {name: round(found[name] / whole, 4) for name, whole in STEP.items()}
            for part, found in counted.items()
        },
    }


def _counted(function: Callable[[Any], Any], argument: Any, images: int) -> dict[str, float]:
    import jax

    cost: Any = jax.jit(function).lower(argument).compile().cost_analysis()
    return {"flops": cost["flops"] / images, "bytes": cost["bytes accessed"] / images}


def main() -> int:
    """Count as the flags say."""
    return flags.run(_run, sys.argv[1:])


def _run(argv: list[str]) -> int:
    _, named = flags.parse_without_page(argv, places={}, named=NAMED, usage=USAGE)
    numbers = {name: named[name] for name in ("images", "size", "canvas")}
    output.keep(measure(recipe=named["recipe"], **numbers), named["output"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
