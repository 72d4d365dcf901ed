"""`moco-jax convert SRC DST --format=FORMAT`: flags, then one call."""

import ctypes
from collections.abc import Sequence

from moco_jax import config
from moco_jax.cli import flags
from moco_jax.config import ConfigError

USAGE = (
    "usage: moco-jax convert SRC DST --format=FORMAT [--encoder=online|target] [--classifier=DIR] [--sha256=HEX]\n"
    "       [--license=NAME] [--config=PAGE] [--config.KEY=VALUE ...]\n\n"
    "Weights from one program's format to another's: read safely, mapped without left-overs, compared in features.\n\n"
    "  moco-jax convert runs/moco moco.pth.tar --format=pth.tar       for the released MoCo code\n"
    "  moco-jax convert moco.pth.tar runs/back --format=orbax         and back, to the bit\n"
    "  moco-jax convert checkpoint_0099.pth.tar runs/on --format=orbax --config=moco_v2_r50     training goes on\n"
    "  moco-jax convert moco_v2_800ep_pretrain.pth.tar v2 --format=timm\n"
    "  moco-jax convert runs/xray xray_hf --format=huggingface --classifier=runs/xray/linear\n"
    "  moco-jax convert runs/photos photos.pkl --format=detectron2\n"
    "  moco-jax convert runs/photos photos.pth --format=pth           a state_dict in torchvision's names\n\n"
    "Formats: orbax (a run's folder), pth.tar (the released code's, whole), pth (backbone, torchvision's names),\n"
    "timm and huggingface (folders), detectron2 (.pkl, only written)."
)
PLACES = {
    "SRC": "a run's folder; a .pth.tar of MoCo v1 or v2 or of its notebook; a ResNet's .pth or .safetensors; a folder "
    "of timm or transformers",
    "DST": "what is written; it must not be there yet",
}
NAMED = {
    "format": (None, "orbax, pth.tar, pth, timm, huggingface or detectron2"),
    "encoder": ("online", "online or target, for a format that holds one"),
    "classifier": (None, "folder of an eval-linear result of that encoder, to travel with it"),
    "sha256": (None, "refuse SRC unless it has this SHA-256"),
    "license": (None, "licence of the weights, such as apache-2.0, for the model card"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Convert as the flags say; returns the exit status."""
    return flags.run(_convert, argv)


def _convert(argv: Sequence[str]) -> int:
    of_page = [a for a in argv if a.lstrip("-").startswith("config") and a.startswith("-")]
    rest = [a for a in argv if a not in of_page]
    if of_page and not any(a.lstrip("-").startswith("config=") for a in of_page):
        raise ConfigError(f"{of_page[0]}: name the page by --config=PAGE, such as --config=moco_v2_r50")
    (src, dst), named = flags.parse_without_page(rest, places=PLACES, named=NAMED, usage=USAGE)
    if named["format"] is None:
        raise ConfigError(f"--format=FORMAT is missing: {NAMED['format'][1]}")
    page = config.read(flags.parse(of_page, page="digits", named={}, usage=USAGE)[0]) if of_page else None
    flags.prepare_environment()
    _give_memory_back()

    from moco_jax.conversion import convert

    convert.convert(
        src,
        dst,
        named["format"],
        which=named["encoder"],
        config=page,
        classifier=named["classifier"],
        sha256=named["sha256"],
        licence=named["license"],
        flags=of_page,
        say=flags.say,
    )
    return 0


def _give_memory_back() -> None:
    """Have glibc return every freed array to the system: by itself it keeps those below 32 MB, most of a network."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # M_MMAP_THRESHOLD
        mallopt(-3, 2**16)
