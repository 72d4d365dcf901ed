"""The model card of a folder: what the weights are, where from, and how to use them, in Markdown with a YAML header."""

import json
from pathlib import PurePath
from typing import Any

from moco_jax.checkpoints.backbones import feature_size
from moco_jax.checkpoints.folders import cut_elsewhere, licence, usual
from moco_jax.checkpoints.weights import Portable

WHICH = {
    "online": "the online encoder, which encoded the queries and was trained by gradients",
    "target": "the target encoder, which encoded the keys: an exponential moving average of the online one",
}
KEYS = "the second encoder, which encoded the keys and was trained by gradients too"  # end to end
TITLES = {
    "moco": "Momentum Contrast (MoCo)",
    "end_to_end": "end-to-end contrast",
    "memory_bank": "contrast with a memory bank",
}
PLACES = {
    "data.folder",
    "data.manifest",
    "data.array",
    "data.data_dir",
    "eval.data",
    "eval.data_dir",
    "train.init_from",
}
FOLDER = "path/to/this/folder"  # in the snippets, for the reader to replace

TIMM = f"""import timm, torch

model = timm.create_model("local-dir:{FOLDER}", pretrained=True).eval()
images = torch.zeros(1, CHANNELS, SIZE, SIZE)  # prepared as above
with torch.no_grad():
    features = model.forward_head(model.forward_features(images), pre_logits=True)  # (n, FEATURES)"""

HUGGINGFACE = f"""import torch
from transformers import ResNetModel

model = ResNetModel.from_pretrained("{FOLDER}").eval()
images = torch.zeros(1, CHANNELS, SIZE, SIZE)  # prepared as above
with torch.no_grad():
    features = model(images).pooler_output.flatten(1)  # (n, FEATURES)"""

WRAPPED = f"""transformers opens it too, with timm installed: `AutoModel.from_pretrained("{FOLDER}")`.

"""

LOGITS = {
    "timm": "\n    logits = model(images)  # (n, CLASSES)",
    "transformers": """

from transformers import ResNetForImageClassification

model = ResNetForImageClassification.from_pretrained("FOLDER").eval()
with torch.no_grad():
    logits = model(images).logits  # (n, CLASSES)""".replace("FOLDER", FOLDER),
}


def card(portable: Portable, library: str, *, missing: str = "") -> str:
    """The text of README.md for `library`, timm or transformers; `missing` says what the folder could not hold."""
    opened = WRAPPED if library == "timm" else ""
    sections = [
        _header(portable, library),
        _what(portable),
        "## Images\n\n" + "\n\n".join(filter(None, (_images(portable), missing or _processor(portable, library)))),
        f"## Use\n\n```python\n{_snippet(portable, library)}\n```\n\n{opened}Batch norm has its running statistics, as "
        "in evaluation; call `.eval()`, or the images of a batch are normalised by each other.",
        f"## Licence\n\n{_licence(portable)}",
    ]
    if portable.config is not None:
        sections.append(
            f"## The run that made it\n\n```json\n{json.dumps(_without_places(portable.config), indent=2)}\n```"
        )
    return "\n\n".join(sections) + "\n"


def _without_places(config: Any, key: str = "") -> Any:
    """A config whose paths on one machine are the last of their names: a card is published."""
    if isinstance(config, dict):
        return {name: _without_places(value, f"{key}.{name}".lstrip(".")) for name, value in config.items()}
    if isinstance(config, list | tuple):
        return [_without_places(value, key) for value in config]
    place = isinstance(config, str) and (key in PLACES or config.startswith(("/", "~", "./", "../")))
    return PurePath(config).name if place else config


def _header(portable: Portable, library: str) -> str:
    task = "image-feature-extraction" if portable.classifier is None else "image-classification"
    lines = [f"library_name: {library}", f"pipeline_tag: {task}"]
    if portable.license is not None:
        lines.append(f"license: {json.dumps(portable.license)}")  # JSON is YAML
    moco = portable.config is None or portable.config["mechanism"] == "moco"
    tags = [] if portable.which is None else ["tags:", *["- moco"] * moco, "- self-supervised"]
    return "\n".join(["---", *lines, *tags, "---"])


def _what(portable: Portable) -> str:
    model = portable.model
    title, what, paper = model.arch, "A backbone; nobody says how it was trained.", ""
    if portable.which is not None:
        mechanism = "moco" if portable.config is None else portable.config["mechanism"]  # None: the released code's
        title = f"{model.arch}, {TITLES[mechanism]}"
        encoder = KEYS if (mechanism, portable.which) == ("end_to_end", "target") else WHICH[portable.which]
        what = f"The backbone of {encoder}. Its projection head is not here."
        paper = "\n- Paper: Momentum Contrast for Unsupervised Visual Representation Learning (arXiv:1911.05722)"
    if portable.classifier is not None:
        what += f" On it is a linear classifier of {len(portable.classifier.bias)} classes."
    return (
        f"# {portable.name}: {title}\n\n"
        f"{what}\n\n"
        f"- Comes from: {portable.origin}\n"
        f"- Architecture: {model.arch} as torchvision builds it (v1.5), stem `{model.stem}`, {model.width} channels in "
        f"the first stage, {feature_size(model)} features\n"
        f"- Channels of an image: {portable.channels}{paper}"
    )


def _licence(portable: Portable) -> str:
    return licence(portable) or ("Nobody says under which licence these weights are: say one before you publish them.")


def _images(portable: Portable) -> str:
    p = portable.pixels
    if p is None:
        return (
            "Nobody says how images were prepared for this encoder. Where a library fills in a mean and a standard "
            "deviation, they are that library's, not this encoder's."
        )
    low, high = p.range
    out = (
        f"Images as stored are {p.dtype} with {portable.channels} channels. Resize the shorter side to {p.resize} "
        f"pixels ({p.filter}, antialiased), cut the centre {p.size} x {p.size}, map the values {low:g} to {high:g} to "
        f"0 to 1, subtract the mean {list(p.mean)} and divide by the standard deviation {list(p.std)}, per channel."
    )
    if not usual(p):
        out += (
            " The transforms of timm and transformers take 8-bit images; prepare these by code of your own. `moco_jax` "
            "in config.json repeats the numbers."
        )
    return out


def _processor(portable: Portable, library: str) -> str:
    """What a processor of transformers does otherwise, where the folder has one."""
    if library != "transformers" or portable.pixels is None or not usual(portable.pixels):
        return ""
    images = f"images whose longer side, resized, exceeds {portable.pixels.size} by three more than a multiple of four"
    if every := cut_elsewhere(portable.pixels):
        images = "every image"
    way = ": for the same pixels take a timm folder of this encoder" if every else ""
    return f"The processor in this folder cuts {images} one pixel further up or left than that{way}."


def _snippet(portable: Portable, library: str) -> str:
    text = TIMM if library == "timm" else HUGGINGFACE
    numbers = {
        "CHANNELS": portable.channels,
        "SIZE": portable.pixels.size if portable.pixels else 224,
        "FEATURES": feature_size(portable.model),
    }
    if portable.classifier is not None:
        text += LOGITS[library]
        numbers["CLASSES"] = len(portable.classifier.bias)
    for name, value in numbers.items():
        text = text.replace(name, str(value))
    return text
