"""Which program wrote a file of weights, told by what is in it, and what it holds in our terms.

| layout | names |
|---|---|
| the released MoCo code (main_moco.py) | module.encoder_q.*, module.encoder_k.*, module.queue, module.queue_ptr |
| its CIFAR-10 notebook | encoder_q.net.N.*, encoder_k.net.N.*, queue, queue_ptr: a Sequential without its max-pool |
| a linear classifier on a frozen encoder (main_lincls.py) | module.conv1.weight ... module.fc.weight, with best_acc1 |
| PyTorch's ImageNet example | the same, its optimizer over all parameters |
| torchvision, timm | conv1.weight ... fc.weight |
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from moco_jax.checkpoints import messages, pytorch, training, weights
from moco_jax.checkpoints.torch_names import BATCH_COUNT
from moco_jax.checkpoints.training import Ours, Training
from moco_jax.checkpoints.weights import Classifier, Encoder, Origin, Pixels, Tensors
from moco_jax.config import ConfigError

PUBLISHED = {  # the first eight digits of MD5, as their authors give them
    "b251726a": "moco_v1_200ep_pretrain",
    "59fd9945": "moco_v2_200ep_pretrain",
    "a04e12f8": "moco_v2_800ep_pretrain",
}
MOST = 260  # characters of what is said about a file
CONTAINERS = {"epoch", "arch", "state_dict", "optimizer", "best_acc1", training.OURS}
IMAGENET = Pixels(224, 256, "uint8", (0.0, 255.0), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = Pixels(32, 32, "uint8", (0.0, 255.0), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
NOTEBOOK = {0: "conv1", 1: "bn1", 3: "layer1", 4: "layer2", 5: "layer3", 6: "layer4", 9: "fc"}  # 2: ReLU, 7, 8: pooling


class Found(NamedTuple):
    """What a file of weights holds."""

    layout: str  # which program's, in words
    online: Encoder
    target: Encoder | None
    training: Training | None  # None: it holds weights alone
    classifier: Classifier | None
    pixels: Pixels | None  # None: nobody says
    published: str | None  # the name of a file of the original's authors
    ours: Ours | None  # what moco_jax wrote beside
    dropped: tuple[str, ...]  # names left over on purpose, in full
    sha256: str
    origin: Origin | None = None  # of what moco_jax made a folder from; None: nobody says

    @property
    def assumed(self) -> bool:
        """Whether `pixels` are those that its kind of file usually has, as nothing in it says."""
        return self.ours is None and (self.pixels is IMAGENET or self.pixels is CIFAR)


def from_file(path: Path) -> Found:
    """What a PyTorch file holds; ConfigError where it is damaged, or of a layout that is not in the table."""
    content = pytorch.read(path)
    md5, sha256 = pytorch.digests(path)
    if not isinstance(content, dict) or not content:
        kind = "tensor" if isinstance(content, np.ndarray) else type(content).__name__
        have = f"a {kind}" if isinstance(content, np.ndarray) or content else "nothing"
        raise ConfigError(f"{path} holds {have}, and weights are a dict of tensors by their names")
    try:
        found = _found(content)
    except ConfigError as error:
        raise ConfigError(f"{path}: {messages.one_line(str(error), MOST)}") from None
    return found._replace(published=PUBLISHED.get(md5[:8]), sha256=sha256)


def from_tensors(tensors: Tensors, layout: str, sha256: str) -> Found:
    """What a bare dict of tensors under torchvision's names holds; ConfigError as `from_file`."""
    return _bare(tensors, layout, certain=False)._replace(sha256=sha256)


def _found(content: dict[str, Any]) -> Found:
    tensors = content.get("state_dict", content)
    others = {k for k in content if k not in CONTAINERS} if "state_dict" in content else set()
    if others:
        raise ConfigError(f"beside state_dict there is {messages.listed(others)}, which no known layout has")
    if not isinstance(tensors, dict) or not all(isinstance(t, np.ndarray) for t in tensors.values()):
        raise ConfigError("it holds no dict of tensors, neither at its top nor as state_dict")
    if odd := [name for name in tensors if not isinstance(name, str)]:
        raise ConfigError(f"its tensors are numbered ({messages.listed(odd)}), where weights have names")
    if tensors and all(name.startswith("module.") for name in tensors):  # as torch's DistributedDataParallel names them
        tensors = {name.removeprefix("module."): t for name, t in tensors.items()}
    starts = {name.split(".")[0] for name in tensors}
    if {"base_encoder", "momentum_encoder"} & starts:
        raise ConfigError("it is a checkpoint of MoCo v3, which is not read: v1 and v2 are")
    if "encoder_q" in starts:
        return _with_unused(_moco(content, tensors), content, tensors)
    if "conv1.weight" in tensors:
        found = _bare(tensors, _bare_layout(content), certain="best_acc1" in content)
        return _with_unused(_checked_arch(found, content), content, tensors)
    raise ConfigError(
        f"its names ({messages.listed(tensors)}) are those of no known layout: MoCo's encoder_q.*, with or without "
        "module. before them, or torchvision's conv1.weight ..."
    )


def _with_unused(found: Found, content: dict[str, Any], tensors: Tensors) -> Found:
    """With what else is left out of a file: a best accuracy, and without a whole state what only that needs."""
    unused = [n for n in ("best_acc1",) if n in content]
    if found.training is None and "state_dict" in content:
        unused += [n for n in ("epoch", "optimizer") if n in content]
        unused += [n for n in ("queue", "queue_ptr") if n in tensors]
    return found._replace(dropped=(*found.dropped, *unused))


def _bare_layout(content: dict[str, Any]) -> str:
    """main_lincls.py saves as the example that it began as, which trains all parameters where that one trains two."""
    if "best_acc1" not in content:
        return "a ResNet in torchvision's names"
    match content.get("optimizer"):
        case {"param_groups": [{"params": [*trained]}]} if len(trained) != 2:
            return "a supervised network of PyTorch's ImageNet example"
    return "a linear classifier of main_lincls.py"


def _moco(content: dict[str, Any], tensors: Tensors) -> Found:
    """A checkpoint of the released code or of its notebook, whole or with the online encoder alone."""
    parts: dict[str, Tensors] = {"encoder_q": {}, "encoder_k": {}, "": {}}
    notebook = any(name.startswith("encoder_q.net.") for name in tensors)
    for name, value in tensors.items():
        part, _, rest = name.partition(".")
        if part in ("encoder_q", "encoder_k"):
            parts[part][_of_notebook(rest) if notebook else rest] = value
        else:
            parts[""][name] = value
    if extra := parts[""].keys() - {"queue", "queue_ptr"}:
        raise ConfigError(f"beside its two encoders and the queue there is {messages.listed(extra)}")
    (online, dropped), layout = _encoder(parts["encoder_q"], "encoder_q"), "the CIFAR-10 notebook's"
    if not notebook:
        layout = f"the released code's, MoCo {'v2 (MLP head)' if online.model.head == 'mlp' else 'v1 (linear head)'}"
    target = None
    if parts["encoder_k"]:
        target, more = _encoder(parts["encoder_k"], "encoder_k")
        dropped += more
        if target.model != online.model or target.channels != online.channels:
            one, other = (f"{e.model.arch} of width {e.model.width}, {e.channels} channels" for e in (online, target))
            heads = f"head {online.model.head} {online.model.dim}", f"head {target.model.head} {target.model.dim}"
            raise ConfigError(f"encoder_q is a {one}, {heads[0]}, and encoder_k a {other}, {heads[1]}")
    found = Found(
        layout=f"MoCo checkpoint, {layout}",
        online=online,
        target=target,
        training=training.of(content, parts),
        classifier=None,
        pixels=_usual(online, notebook=notebook),
        published=None,
        ours=training.ours(content),
        dropped=dropped,
        sha256="",
    )
    return _checked_arch(found, content)


def _of_notebook(name: str) -> str:
    """net.3.0.conv1.weight -> layer1.0.conv1.weight."""
    match = re.fullmatch(r"net\.([0-9])\.(.+)", name)
    if match is None or int(match[1]) not in NOTEBOOK:
        raise ConfigError(f"{name} is no layer of the notebook's ResNet")
    return f"{NOTEBOOK[int(match[1])]}.{match[2]}"


def _encoder(tensors: Tensors, what: str) -> tuple[Encoder, tuple[str, ...]]:
    """An encoder with its head, and the names that were left out: counts of batches, which nothing reads."""
    counts = {n.removesuffix("running_var") + BATCH_COUNT for n in tensors if n.endswith(".running_var")}
    dropped = tuple(f"{what}.{n}" for n in tensors if n in counts)
    kept = {n: t for n, t in tensors.items() if n not in counts}
    if odd := [n for n in counts & tensors.keys() if tensors[n].size != 1 or tensors[n].dtype.kind not in "iu"]:
        raise ConfigError(f"{messages.listed(odd)} is {tensors[odd[0]].dtype}{tensors[odd[0]].shape}, and no count")
    if left := [n for n in kept if n.endswith(BATCH_COUNT)]:
        raise ConfigError(f"{messages.listed(left)} counts the batches of no batch norm that is there")
    head = {n: kept.pop(n) for n in list(kept) if n.startswith("fc.")}
    try:
        return weights.encoder(kept, head), dropped
    except ConfigError as error:
        raise ConfigError(f"in {what}, {error}" if what else str(error)) from None


def _bare(tensors: Tensors, layout: str, *, certain: bool) -> Found:
    """A backbone under torchvision's names; `fc` is a classifier, or where it has two layers MoCo v2's head."""
    is_head = "fc.2.weight" in tensors
    (encoder, dropped) = _encoder({n: t for n, t in tensors.items() if is_head or not n.startswith("fc.")}, "")
    dropped, classifier = tuple(n.removeprefix(".") for n in dropped), None
    if certain and "fc.weight" not in tensors:
        raise ConfigError("it has no fc.weight, which a linear classifier has")
    if (extra := {n for n in tensors if n.startswith("fc.")}) and not is_head:
        if extra != {"fc.weight", "fc.bias"}:
            raise ConfigError(f"its last layer is {messages.listed(extra)}, where fc.weight and fc.bias are known")
        classifier = weights.classifier(tensors["fc.weight"], tensors["fc.bias"], encoder)
    pixels = _usual(encoder, notebook=False)
    return Found(layout, encoder, None, None, classifier, pixels, None, None, dropped, "")


def _usual(encoder: Encoder, *, notebook: bool) -> Pixels | None:
    """The pixels of its kind of file; None for other channels and stems than those programs have: nobody says."""
    stem, pixels = ("cifar", CIFAR) if notebook else ("imagenet", IMAGENET)
    return pixels if (encoder.channels, encoder.model.stem) == (3, stem) else None


def _checked_arch(found: Found, content: dict[str, Any]) -> Found:
    said = content.get("arch", found.online.model.arch)
    if not isinstance(said, str) or said != found.online.model.arch:
        said = messages.one_line(repr(said), 60) if isinstance(said, str) else f"of type {type(said).__name__}"
        raise ConfigError(f"it says arch {said}, and its tensors are those of {found.online.model.arch}")
    return found
