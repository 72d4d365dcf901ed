"""How the views of an image are made, as pure data: one crop and one list of operations per view, in published order.

Nothing here imports JAX. `augment.py` says what an operation does; mean and standard deviation belong to the data set.
"""

from dataclasses import dataclass

from moco_jax.config import ConfigError, unknown

Range = tuple[float, float]


def _within(what: str, limits: Range, low: float, high: float) -> None:
    if not low < limits[0] <= limits[1] <= high:
        raise ConfigError(f"{what} must be two rising numbers above {low}, at most {high}, not {limits}")


def _probability(what: str, p: float) -> None:
    if not 0 <= p <= 1:
        raise ConfigError(f"{what}.p is a probability in 0..1, not {p}")


@dataclass(frozen=True)
class Crop:
    """Random resized crop: area as a share of the image, and width / height, drawn log-uniformly."""

    scale: Range
    ratio: Range = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        _within("Crop.scale", self.scale, 0, 1)
        _within("Crop.ratio", self.ratio, 0, float("inf"))


@dataclass(frozen=True)
class Grayscale:
    """Luma in all three channels, with probability p."""

    p: float

    def __post_init__(self) -> None:
        _probability("Grayscale", self.p)


@dataclass(frozen=True)
class ColorJitter:
    """With probability p, in random order: factors U(max(0, 1 - x), 1 + x), and hue moved by U(-hue, hue) turns.

    Saturation and hue above 0 need three channels.
    """

    brightness: float
    contrast: float
    saturation: float
    hue: float
    p: float

    def __post_init__(self) -> None:
        _probability("ColorJitter", self.p)
        if min(self.brightness, self.contrast, self.saturation, self.hue) < 0 or self.hue > 0.5:
            raise ConfigError(f"{self}: strengths must be 0 or more, and hue at most 0.5 turns")


@dataclass(frozen=True)
class GaussianBlur:
    """With probability p, a standard deviation drawn from U(low, high) pixels."""

    low: float
    high: float
    p: float

    def __post_init__(self) -> None:
        _probability("GaussianBlur", self.p)
        _within("GaussianBlur.low, high", (self.low, self.high), 0, float("inf"))


@dataclass(frozen=True)
class Solarize:
    """With probability p, values of 128/255 and above inverted."""

    p: float

    def __post_init__(self) -> None:
        _probability("Solarize", self.p)


@dataclass(frozen=True)
class HorizontalFlip:
    """Left and right exchanged, with probability p."""

    p: float

    def __post_init__(self) -> None:
        _probability("HorizontalFlip", self.p)


@dataclass(frozen=True)
class VerticalFlip:
    """Top and bottom exchanged, with probability p: for what has no up, such as pictures from above."""

    p: float

    def __post_init__(self) -> None:
        _probability("VerticalFlip", self.p)


@dataclass(frozen=True)
class BandGain:
    """With probability p, each channel times its own factor U(max(0, 1 - strength), 1 + strength)."""

    strength: float
    p: float

    def __post_init__(self) -> None:
        _probability("BandGain", self.p)
        if not 0 <= self.strength < float("inf"):
            raise ConfigError(f"BandGain.strength must be 0 or more, not {self.strength}")


@dataclass(frozen=True)
class ChannelDrop:
    """With probability p, some channels show nothing but their own mean: 1 to `share` of them, never all.

    Needs two channels or more.
    """

    share: float
    p: float

    def __post_init__(self) -> None:
        _probability("ChannelDrop", self.p)
        if not 0 < self.share < 1:
            raise ConfigError(f"ChannelDrop.share, of the channels, must lie between 0 and 1, not be {self.share}")


@dataclass(frozen=True)
class Affine:
    """With probability p: a rotation by U(-degrees, degrees), a shift, a zoom by U(*scale), a shear along the rows.

    The shift is by whole pixels, at most `translate` of each side; the shear is by U(-shear, shear) degrees. What comes
    from outside the image is 0.
    """

    degrees: float
    translate: float
    scale: Range
    shear: float
    p: float

    def __post_init__(self) -> None:
        _probability("Affine", self.p)
        _within("Affine.scale", self.scale, 0, float("inf"))
        if not (self.degrees >= 0 and 0 <= self.translate <= 1 and 0 <= self.shear < 90):
            raise ConfigError(f"{self}: degrees must be 0 or more, translate lie in 0..1, shear in 0..90 degrees")


Op = Grayscale | ColorJitter | GaussianBlur | Solarize | HorizontalFlip | VerticalFlip | BandGain | ChannelDrop | Affine


@dataclass(frozen=True)
class ViewRecipe:
    """One view: the crop, then the operations in this order."""

    crop: Crop
    ops: tuple[Op, ...]


Recipe = tuple[ViewRecipe, ...]  # one per view

_MOCO_V1 = ViewRecipe(
    Crop(scale=(0.2, 1.0)),
    (
        Grayscale(p=0.2),
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.4, p=1.0),
        HorizontalFlip(p=0.5),
    ),
)
_MOCO_V2 = ViewRecipe(
    Crop(scale=(0.2, 1.0)),
    (
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
        Grayscale(p=0.2),
        GaussianBlur(low=0.1, high=2.0, p=0.5),
        HorizontalFlip(p=0.5),
    ),
)
_V3_JITTER = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8)
_MOCO_V3 = (
    ViewRecipe(
        Crop(scale=(0.2, 1.0)),
        (_V3_JITTER, Grayscale(p=0.2), GaussianBlur(low=0.1, high=2.0, p=1.0), HorizontalFlip(p=0.5)),
    ),
    ViewRecipe(
        Crop(scale=(0.2, 1.0)),
        (
            _V3_JITTER,
            Grayscale(p=0.2),
            GaussianBlur(low=0.1, high=2.0, p=0.1),
            Solarize(p=0.2),
            HorizontalFlip(p=0.5),
        ),
    ),
)
_CIFAR_DEMO = ViewRecipe(
    Crop(scale=(0.08, 1.0)),
    (
        HorizontalFlip(p=0.5),
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, p=0.8),
        Grayscale(p=0.2),
    ),
)
# A mirrored digit is another sign, and there is no colour: what stays the same is where and how it is written.
_DIGITS = ViewRecipe(
    Crop(scale=(0.7, 1.0)),
    (Affine(degrees=15.0, translate=0.1, scale=(0.9, 1.1), shear=5.0, p=1.0),),
)
# Crops are mild, as in ConVIRT (arXiv:2010.00747: area 0.6 to 1): a finding is a few pixels, and the two views must
# share it. No flip: a mirrored chest has its heart on the right, and what an encoder was taught not to see is lost, as
# are the sides of knees and breasts. (MoCo-CXR, arXiv:2010.05352, flips: no label of its data set names a side. Where
# yours name none either, a recipe of your own may add HorizontalFlip(0.5).)
_XRAY = ViewRecipe(
    Crop(scale=(0.6, 1.0)),
    (
        ColorJitter(brightness=0.4, contrast=0.4, saturation=0.0, hue=0.0, p=0.8),
        GaussianBlur(low=0.1, high=2.0, p=0.5),
    ),
)
# Seen from above there is neither up nor left. Gains are half as strong as v2's brightness, because they part the bands
# from each other: at 0.4 the red and near infrared of a plant could become those of soil. Up to a quarter of the bands
# goes missing in a fifth of the views, so that no few of them decide.
_BANDS = ViewRecipe(
    Crop(scale=(0.2, 1.0)),
    (
        BandGain(strength=0.2, p=0.8),
        ChannelDrop(share=0.25, p=0.2),
        GaussianBlur(low=0.1, high=2.0, p=0.5),
        HorizontalFlip(p=0.5),
        VerticalFlip(p=0.5),
    ),
)

_SUPERVISED = ViewRecipe(Crop(scale=(0.08, 1.0)), (HorizontalFlip(p=0.5),))

RECIPES: dict[str, Recipe] = {
    "moco_v1": (_MOCO_V1, _MOCO_V1),  # facebookresearch/moco, main_moco.py without --aug-plus
    "moco_v2": (_MOCO_V2, _MOCO_V2),  # the same with --aug-plus
    "moco_v3": _MOCO_V3,  # facebookresearch/moco-v3, main_moco.py with --crop-min .2, as for its ResNet
    "cifar_demo": (_CIFAR_DEMO, _CIFAR_DEMO),  # its CIFAR-10 notebook, for 32-pixel views
    "digits": (_DIGITS, _DIGITS),  # any number of channels
    "xray": (_XRAY, _XRAY),  # any number of channels, meant for one
    "bands": (_BANDS, _BANDS),  # two channels or more
    # One view, for classifiers; any number of channels.
    "supervised": (_SUPERVISED,),  # facebookresearch/moco, main_lincls.py
    "supervised_digits": (_DIGITS,),
}


def get(name: str, channels: int) -> Recipe:
    """The recipe of that name; raises ConfigError for unknown names and where `check` does."""
    if name not in RECIPES:
        raise unknown("views.recipe", name, RECIPES)
    recipe = RECIPES[name]
    check(recipe, channels, name=repr(name))
    return recipe


def check(recipe: Recipe, channels: int, *, name: str = "given") -> None:
    """Raise ConfigError if an operation of the recipe does not fit images of that many channels."""
    unmet = _unmet(recipe, channels)
    if unmet:
        fits = sorted(n for n, r in RECIPES.items() if len(r) == len(recipe) and not _unmet(r, channels))
        raise ConfigError(
            f"the {name} recipe uses {' and '.join(unmet)}, but the images have {channels}; "
            f"use one that fits: {' or '.join(fits)}"
        )


def _unmet(recipe: Recipe, channels: int) -> list[str]:
    """What operations of the recipe need and images of that many channels do not have, in words."""
    ops = [op for view in recipe for op in view.ops]
    colour = sorted({need for op in ops for need in _three_channel_needs(op)})
    unmet = [f"{', '.join(colour)}, which need 3 channels"] if colour and channels != 3 else []
    if channels < 2 and any(isinstance(op, ChannelDrop) for op in ops):
        unmet.append("ChannelDrop, which needs 2 channels or more")
    return unmet


def _three_channel_needs(op: Op) -> list[str]:
    if isinstance(op, Grayscale):
        return ["Grayscale"]
    if isinstance(op, ColorJitter):
        return [f"ColorJitter.{part}" for part in ("saturation", "hue") if getattr(op, part) > 0]
    return []
