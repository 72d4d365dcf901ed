"""What operations that move pixels do to one image (H, W, C): as `augment.py`, whose conventions hold here.

Pixels and channels stay what they are but for the interpolation of `adjust_affine`.
"""

import jax
import jax.numpy as jnp

from moco_jax.views import augment


def adjust_flip(image: jax.Array) -> jax.Array:
    """Left and right exchanged: (H, W, C) -> (H, W, C)."""
    return image[:, ::-1]


def random_horizontal_flip(key: jax.Array, image: jax.Array, *, p: float, whole: bool) -> jax.Array:
    """torchvision's RandomHorizontalFlip(p)."""
    del whole  # values move, none changes
    return jnp.where(augment.draws(key, 1, image.dtype)[0] < p, adjust_flip(image), image)


def random_vertical_flip(key: jax.Array, image: jax.Array, *, p: float, whole: bool) -> jax.Array:
    """torchvision's RandomVerticalFlip(p): top and bottom exchanged."""
    del whole
    return jnp.where(augment.draws(key, 1, image.dtype)[0] < p, image[::-1], image)


def inverse_affine(
    angle: jax.Array, shift: tuple[jax.Array, jax.Array], scale: jax.Array, shear: jax.Array, *, height: int, width: int
) -> tuple[jax.Array, ...]:
    """PIL's six numbers, from output (x, y) to input (x, y), of torchvision's affine.

    Scale, shear along x and clockwise rotation (degrees) about the centre, then a shift (x, y) in pixels.
    """
    turn, skew = jnp.deg2rad(angle), jnp.tan(jnp.deg2rad(shear))
    cos, sin = jnp.cos(turn), jnp.sin(turn)
    a, b = (cos - sin * skew) / scale, (sin + cos * skew) / scale
    d, e = -sin / scale, cos / scale
    x, y = width / 2 + shift[0], height / 2 + shift[1]  # where the centre goes
    return a, b, width / 2 - a * x - b * y, d, e, height / 2 - d * x - e * y


def adjust_affine(image: jax.Array, matrix: tuple[jax.Array, ...], *, whole: bool) -> jax.Array:
    """PIL's transform(AFFINE, BILINEAR): output (x, y) from input (ax + by + c, dx + ey + f), else 0.

    (H, W, C) -> (H, W, C). Pixel centres lie at halves; inside the image, edges are extended for interpolation.
    """
    height, width, channels = image.shape
    a, b, c, d, e, f = matrix
    x = jnp.arange(width, dtype=image.dtype)[None, :] + 0.5  # (1, W)
    y = jnp.arange(height, dtype=image.dtype)[:, None] + 0.5  # (H, 1)
    from_x, from_y = a * x + b * y + c, d * x + e * y + f  # (H, W)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    left, top = jnp.floor(from_x - 0.5), jnp.floor(from_y - 0.5)
    across, down = (from_x - 0.5 - left)[:, :, None], (from_y - 0.5 - top)[:, :, None]
    columns = [jnp.clip(left.astype(jnp.int32) + i, 0, width - 1) for i in (0, 1)]
    rows = [jnp.clip(top.astype(jnp.int32) + i, 0, height - 1) for i in (0, 1)]
    pixels = image.reshape(height * width, channels)

    def at(row: jax.Array, column: jax.Array) -> jax.Array:
        return pixels.at[row * width + column].get(mode="promise_in_bounds")  # (H, W, C)

    upper, lower = (_mixed(at(row, columns[0]), at(row, columns[1]), across) for row in rows)
    return jnp.where(inside[:, :, None], augment.truncated(_mixed(upper, lower, down), whole), 0)


def _mixed(a: jax.Array, b: jax.Array, share: jax.Array) -> jax.Array:
    return a + (b - a) * share  # exactly a where both are equal, or the truncation would take a level


def random_affine(
    key: jax.Array,
    image: jax.Array,
    *,
    degrees: float,
    translate: float,
    scale: tuple[float, float],
    shear: float,
    p: float,
    whole: bool,
) -> jax.Array:
    """torchvision's RandomAffine, bilinear, filled with 0, with probability p; shifts are whole pixels, as there."""
    height, width, _ = image.shape
    u = augment.draws(key, 6, image.dtype)
    matrix = inverse_affine(
        augment.between(u[0], -degrees, degrees),
        (
            jnp.round(augment.between(u[1], -translate * width, translate * width)),
            jnp.round(augment.between(u[2], -translate * height, translate * height)),
        ),
        augment.between(u[3], scale[0], scale[1]),
        augment.between(u[4], -shear, shear),
        height=height,
        width=width,
    )
    return jnp.where(u[5] < p, adjust_affine(image, matrix, whole=whole), image)
