"""What a conversion mapped, for a terminal: by part, with shapes and dtypes, and what was left over."""

from collections.abc import Sequence

import numpy as np

from moco_jax.checkpoints import torch_names
from moco_jax.checkpoints.weights import Encoder, Tensors
from moco_jax.conversion.source import Source


def of(what: Source, which: str, *, whole: bool, lost: Sequence[str] = ()) -> list[str]:
    """Lines of the table; `whole`: the state of training is mapped, else the backbone of one encoder.

    `lost` is what the format has no place for, in words.
    """
    parts = _parts(what, which, whole)
    lines = [f"{'part':<16}{'tensors':>8}{'values':>13}  {'dtype':<8}  shapes"]
    for called, tensors in parts.items():
        values, dtypes = sum(t.size for t in tensors.values()), sorted({str(t.dtype) for t in tensors.values()})
        ends = list(dict.fromkeys([*list(tensors)[:1], *list(tensors)[-1:]]))
        shapes = " ... ".join(f"{name} {tensors[name].shape}" for name in ends)
        lines.append(f"{called:<16}{len(tensors):>8}{values:>13,}  {', '.join(dtypes):<8}  {shapes}")
    return [*lines, *_left(what, which, whole), *(f"left out: {part}" for part in lost), "left over: none"]


def _parts(what: Source, which: str, whole: bool) -> dict[str, Tensors]:
    encoders = {"online": what.online, "target": what.target} if whole else {which: what.encoder(which)}
    parts: dict[str, Tensors] = {}
    for called, encoder in encoders.items():
        if encoder is None:
            continue
        tensors = encoder.backbone | (encoder.head if whole else {})
        for name in torch_names.in_order(tensors):
            parts.setdefault(f"{called} {_stage(name)}", {})[name] = tensors[name]
    if not whole:
        return parts
    if what.run is not None:
        memory, momentum = what.run.tree["memory"], what.run.momentum
        parts["momentum"] = {name: momentum[name] for name in torch_names.in_order(momentum)}
        parts["memory"] = {name: memory[name] for name in ("queue", "ptr", "written")}
    elif what.found is not None and what.found.training is not None:
        training = what.found.training
        parts["momentum"] = training.momentum
        parts["memory"] = {"queue": training.queue, "ptr": np.asarray(training.ptr, np.int32)}
        if what.found.ours is not None:
            parts["memory"]["written"] = what.found.ours.written
    return parts


def _stage(name: str) -> str:
    first = name.split(".")[0]
    return first if first.startswith("layer") else "head" if first == "fc" else "stem"


def _left(what: Source, which: str, whole: bool) -> list[str]:
    """Everything that does not travel, by name: there is nothing else, or it would have been an error."""
    lines = []
    if what.found is not None:
        counts = [name for name in what.found.dropped if name.endswith(torch_names.BATCH_COUNT)]
        others = [name for name in what.found.dropped if name not in counts]
        lines += [f"left out: {len(counts)} x {torch_names.BATCH_COUNT}, which nothing reads"] if counts else []
        lines += [f"left out: {', '.join(others)}, which no encoder needs"] if others else []
    if not whole:
        encoder: Encoder = what.encoder(which)
        if encoder.head:
            shape = " -> ".join(str(len(encoder.head[n])) for n in torch_names.in_order(encoder.head) if "bias" in n)
            lines.append(
                f"left out: the projection head ({len(encoder.head)} tensors, {shape}), which only training uses"
            )
        if what.target is not None:
            trained = what.run is not None or (what.found is not None and what.found.training is not None)
            lines.append("left out: the other encoder" + (", the optimizer and the dictionary" if trained else ""))
    return lines
