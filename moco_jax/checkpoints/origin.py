"""Where weights come from, in words that travel on with them: from a file into a run, and from a run into a card."""

from typing import Any

from moco_jax.checkpoints.recognise import Found
from moco_jax.checkpoints.weights import Origin

MIT_OR_NC = (
    "Weights published by the authors of MoCo: their repository's LICENSE file has been MIT since January 2023, while "
    "its README says CC-BY-NC 4.0, which was its licence when the weights were published: settle which holds for you "
    "before any commercial use."
)


def of_run(about: dict[str, Any], step: int) -> Origin:
    """Of a run at a step, by its description: its own training, after that of what it began from."""
    text, note = f"run of {about['config']['mechanism']}, step {step} of {about['total_steps']}", ""
    init = about.get("init")
    for how, kept in (
        ("started from", init.get("origin") if isinstance(init, dict) else None),
        ("continued from", about.get("origin")),
    ):
        if isinstance(kept, dict) and all(isinstance(kept.get(name), str) for name in Origin._fields):
            text, note = f"{text}, {how} {kept['text']}", note or kept["license_note"]
    return Origin(text, note)


def of_file(found: Found) -> Origin:
    """Of a file or folder of weights, with its SHA-256."""
    text, note = layout(found), ""
    if found.ours is not None:
        note = of_run(found.ours.about, found.ours.step).license_note
    if found.published is not None:
        text, note = f"{found.published} as published by the authors of MoCo ({text})", MIT_OR_NC
    text = f"{text}, SHA-256 {found.sha256}"
    if found.origin is not None:
        text, note = f"{text}, made from {found.origin.text}", note or found.origin.license_note
    return Origin(text, note)


def layout(found: Found) -> str:
    """What a file is, in words, and how far its training had come."""
    if found.ours is not None:
        return f"{of_run(found.ours.about, found.ours.step).text}, laid out as {found.layout}"
    return found.layout + ("" if found.training is None else f", after epoch {found.training.epoch}")
