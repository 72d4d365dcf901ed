"""Recipes are data: what was published is pinned, and images that a recipe does not fit are refused with a reason."""

import ast
import inspect

import pytest

from moco_jax.config import ConfigError
from moco_jax.views import recipes
from moco_jax.views.recipes import (
    RECIPES,
    Affine,
    BandGain,
    ChannelDrop,
    ColorJitter,
    Crop,
    GaussianBlur,
    Grayscale,
    HorizontalFlip,
    Solarize,
    VerticalFlip,
    ViewRecipe,
)


def test_moco_v1_is_published():
    """facebookresearch/moco, main_moco.py: gray before jitter, hue as strong as the rest, jitter always."""
    view = ViewRecipe(
        Crop((0.2, 1.0), (3 / 4, 4 / 3)),
        (Grayscale(0.2), ColorJitter(0.4, 0.4, 0.4, 0.4, 1.0), HorizontalFlip(0.5)),
    )
    assert RECIPES["moco_v1"] == (view, view)


def test_moco_v2_is_published():
    """facebookresearch/moco, main_moco.py --aug-plus: jitter before gray, weaker hue, blur before the flip."""
    view = ViewRecipe(
        Crop((0.2, 1.0), (3 / 4, 4 / 3)),
        (ColorJitter(0.4, 0.4, 0.4, 0.1, 0.8), Grayscale(0.2), GaussianBlur(0.1, 2.0, 0.5), HorizontalFlip(0.5)),
    )
    assert RECIPES["moco_v2"] == (view, view)


def test_moco_v3_is_published():
    """facebookresearch/moco-v3, main_moco.py: weaker saturation; view 0 always blurred, view 1 seldom and solarized."""
    jitter, gray, flip = ColorJitter(0.4, 0.4, 0.2, 0.1, 0.8), Grayscale(0.2), HorizontalFlip(0.5)
    crop = Crop((0.2, 1.0), (3 / 4, 4 / 3))
    assert RECIPES["moco_v3"] == (
        ViewRecipe(crop, (jitter, gray, GaussianBlur(0.1, 2.0, 1.0), flip)),
        ViewRecipe(crop, (jitter, gray, GaussianBlur(0.1, 2.0, 0.1), Solarize(0.2), flip)),
    )


def test_cifar_demo_is_published():
    """facebookresearch/moco's CIFAR notebook: torchvision's default crop, flip first, no blur."""
    view = ViewRecipe(
        Crop((0.08, 1.0), (3 / 4, 4 / 3)),
        (HorizontalFlip(0.5), ColorJitter(0.4, 0.4, 0.4, 0.1, 0.8), Grayscale(0.2)),
    )
    assert RECIPES["cifar_demo"] == (view, view)


def test_xray_keeps_sides_and_has_no_colour():
    """For one channel: a mild crop, v2's brightness, contrast and blur; nothing mirrors, nothing asks for colour."""
    v2_jitter, _, v2_blur, _ = RECIPES["moco_v2"][0].ops
    jitter = ColorJitter(v2_jitter.brightness, v2_jitter.contrast, 0.0, 0.0, v2_jitter.p)
    view = ViewRecipe(Crop((0.6, 1.0), (3 / 4, 4 / 3)), (jitter, v2_blur))
    assert RECIPES["xray"] == (view, view)


def test_bands_has_no_colour_and_no_up():
    """Gain and loss of single bands in the place of colour, both flips; v2's crop and blur."""
    v2 = RECIPES["moco_v2"][0]
    ops = (BandGain(0.2, 0.8), ChannelDrop(0.25, 0.2), v2.ops[2], HorizontalFlip(0.5), VerticalFlip(0.5))
    view = ViewRecipe(v2.crop, ops)
    assert RECIPES["bands"] == (view, view)


def test_digits_keeps_a_sign_a_sign():
    """A mirrored digit is another sign: the recipe moves digits and never flips them."""
    assert all(isinstance(op, Affine) for view in RECIPES["digits"] for op in view.ops)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 13])
@pytest.mark.parametrize("name", sorted(RECIPES))
def test_a_recipe_is_refused_where_its_operations_do_not_fit(name, channels):
    """Colour never meets another number than 3, nor the loss of channels a single one; the error names what fits."""
    least = {"digits": 1, "xray": 1, "bands": 2, "supervised": 1, "supervised_digits": 1}
    if channels == 3 or channels >= least.get(name, 99):
        assert recipes.get(name, channels) is RECIPES[name]
        return
    with pytest.raises(ConfigError) as error:
        recipes.get(name, channels)
    fits = " or ".join(n for n in ("bands", "digits", "xray") if channels >= least[n])
    assert str(error.value).endswith(f"but the images have {channels}; use one that fits: {fits}")
    needs = ["ChannelDrop, which needs 2"] if name == "bands" else ["ColorJitter.hue", "ColorJitter.saturation"]
    needs += [] if name == "bands" else ["Grayscale, which need 3 channels"]
    assert all(word in str(error.value) for word in (repr(name), *needs))


def test_an_unknown_name_is_answered_with_the_nearest():
    """A typing error costs one look at the message."""
    with pytest.raises(ConfigError, match="moco_2.*did you mean 'moco_v"):
        recipes.get("moco_2", 3)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Crop((0.0, 1.0)), "Crop.scale"),
        (lambda: Crop((0.2, 1.2)), "Crop.scale"),
        (lambda: Crop((0.5, 0.2)), "Crop.scale"),
        (lambda: Crop((0.2, 1.0), (0.0, 1.0)), "Crop.ratio"),
        (lambda: GaussianBlur(0.0, 1.0, 0.5), "GaussianBlur"),  # a width of 0 divides by 0
        (lambda: HorizontalFlip(50), "HorizontalFlip.p"),
        (lambda: Grayscale(-0.1), "Grayscale.p"),
        (lambda: VerticalFlip(1.5), "VerticalFlip.p"),
        (lambda: BandGain(-0.1, 0.5), "BandGain.strength"),
        (lambda: BandGain(0.1, 2.0), "BandGain.p"),
        (lambda: ChannelDrop(1.0, 0.5), "ChannelDrop.share"),  # all channels
        (lambda: ChannelDrop(0.0, 0.5), "ChannelDrop.share"),
        (lambda: ChannelDrop(0.5, -0.5), "ChannelDrop.p"),
        (lambda: ColorJitter(0.4, 0.4, 0.4, 0.6, 1.0), "hue"),
        (lambda: ColorJitter(-0.4, 0.4, 0.4, 0.1, 1.0), "strengths"),
        (lambda: Affine(10.0, 2.0, (0.9, 1.1), 5.0, 1.0), "translate"),
        (lambda: Affine(10.0, 0.1, (0.0, 1.1), 5.0, 1.0), "Affine.scale"),
    ],
)
def test_impossible_numbers_are_refused_when_written(make, word):
    """A recipe that exists can be run: what would end as NaN or a silent clip is a ConfigError with the number."""
    with pytest.raises(ConfigError, match=word):
        make()


def test_recipes_are_pure_data():
    """The module imports nothing but dataclasses and the config, so that any tool can read a recipe."""
    tree = ast.parse(inspect.getsource(recipes))
    modules = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    assert modules == {"dataclasses", "moco_jax.config"}
    assert not any(isinstance(n, ast.Import) for n in ast.walk(tree))
