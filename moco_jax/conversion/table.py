"""What a conversion mapped, for a terminal: by part, with shapes and dtypes, and what was left over."""

from moco_jax.checkpoints import torch_names
from moco_jax.checkpoints.weights import Encoder, Tensors
from moco_jax.conversion.source import Source


def of(what: Source, which: str, *, whole: bool) -> list[str]:
    """Lines of the table; `whole`: the state of training is mapped, else the backbone of one encoder."""
    parts = _parts(what, which, whole)
    lines = [f"{'part':<16}{'tensors':>8}{'values':>13}  {'dtype':<8}  shapes"]
    for called, tensors in parts.items():
        values, dtypes = sum(t.size for t in tensors.values()), sorted({str(t.dtype) for t in tensors.values()})
        ends = list(dict.fromkeys([*list(tensors)[:1], *list(tensors)[-1:]]))
        shapes = " ... ".join(f"{name} {tensors[name].shape}" for name in ends)
        lines.append(f"{called:<16}{len(tensors):>8}{values:>13,}  {', '.join(dtypes):<8}  {shapes}")
    return [*lines, *_left(what, which, whole)]


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
        parts["momentum"], parts["memory"] = training.momentum, {"queue": training.queue}
    return parts


def _stage(name: str) -> str:
    first = name.split(".")[0]
    return first if first.startswith("layer") else "head" if first == "fc" else "stem"


def _left(what: Source, which: str, whole: bool) -> list[str]:
    """Everything that does not travel, by name: there is nothing else, or it would have been an error."""
    lines = []
    if what.found is not None and what.found.dropped:
        lines.append(f"left out: {len(what.found.dropped)} x num_batches_tracked, which nothing reads")
    if not whole:
        encoder: Encoder = what.encoder(which)
        if encoder.head:
            shape = " -> ".join(str(len(encoder.head[n])) for n in torch_names.in_order(encoder.head) if "bias" in n)
            lines.append(
                f"left out: the projection head ({len(encoder.head)} tensors, {shape}), which only training uses"
            )
        others = "the other encoder, momentum and queue" if what.target is not None else ""
        lines += [f"left out: {others}"] if others else []
    return [*lines, "left over: none"]
