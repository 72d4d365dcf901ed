"""What the suite found, as lines for people: numbers, and how they stand to what was aimed at."""

from collections.abc import Iterator
from typing import Any

from benchmarks.gpu.torch_step import VALID

# Images/s of MoCo ResNet-50 at 224 pixels in bfloat16: from published supervised rates, by the cost of MoCo's step.
BANDS = {
    "H200": (("record class", 5700), ("good", 4500), ("par", 3400)),
    "H100": (("record class", 4900), ("good", 4100), ("par", 3100)),
}


def of(found: dict[str, Any]) -> str:
    """All lines."""
    return "\n".join(_lines(found))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    yield f"{found['card']}, JAX {found['jax']}" + (
        "" if found["full_size"] else "; shrunken: no figure means anything"
    )
    for name, part in found.items():
        if isinstance(part, dict) and "failed" in part:
            yield f"{name} FAILED: {part['failed']}"
    if found["not_measured"]:
        yield f"not measured, for want of time: {', '.join(found['not_measured'])}"
    if "all_hold" in (part := found.get("correct", {})):
        yield f"correct: {'yes' if part['all_hold'] else 'NO'}"
        for name, check in part.items():
            if isinstance(check, dict):
                yield f"  {name}: {'holds' if check['holds'] else f'DOES NOT HOLD: {check}'}"
    if "copy_tb_per_second" in (part := found.get("ceilings", {})):
        yield f"ceilings: {part['copy_tb_per_second']:.2f} TB/s copied, {part['bfloat16_product_tflops']:.0f} TFLOP/s"
    steps = found.get("steps", {})
    for name, part in steps.items():
        if name.startswith("batch"):
            yield f"ResNet-50, {name}: {_rate(part)}{_band(found['card'], part['images_per_second'])}"
    if "fit" in steps:
        rate, cost = steps["fit"]["images_per_second_at_large_batches"], steps["fit"]["fixed_milliseconds"]
        yield f"  fit: {rate:,.0f} images/s and {cost:.1f} ms a step"
    if "program" in steps:
        over, wide = steps["program"]["bytes_over_448_mb"], steps["program"]["float32_activations"]
        yield f"  program: {over:.2f} of 448 MB an image, {len(wide)} float32 activations stored"
    for name, part in found.get("demo", {}).items():
        if name != "failed":
            yield f"CIFAR-10 {name}: {_rate(part)}"
    for name, part in found.get("beside_pytorch", {}).items():
        if isinstance(part, dict):
            yield from _beside(found["card"], name, part)
    for kernel in found.get("profile", {}).get("ten", []):
        yield f"  {kernel['share']:6.1%}  {kernel['kernel'][:100]}"


def _rate(part: dict[str, Any]) -> str:
    low, high = part["spread_milliseconds"]
    return f"{part['images_per_second']:,.0f} images/s, {part['step_milliseconds']:.2f} ms ({low:.2f} to {high:.2f})"


def _band(card: str, rate: float) -> str:
    for kind, bands in BANDS.items():
        if kind in card:
            return "; " + next((name for name, least in bands if rate >= least), "below par")
    return ""


def _beside(card: str, name: str, part: dict[str, Any]) -> Iterator[str]:
    yield f"{name} on ready views: ours {_rate(part['ours on ready views, plain batch norm'])}"
    rates = []
    for variant, theirs in part["PyTorch"].items():
        if isinstance(theirs, dict):
            yield f"  PyTorch, {variant}: " + (theirs["failed"] if "failed" in theirs else _rate(theirs))
            rates += [theirs["images_per_second"]] if "failed" not in theirs and "grouped" not in variant else []
    least = next((rate for kind, rate in VALID.items() if kind in card), None)
    if rates and least and name == "ResNet-50":
        yield f"  a fair comparison: {'yes' if max(rates) >= least else f'NO, its fastest is below {least:,} images/s'}"
    if part["ours over its fastest"]:
        yield f"  ours over its fastest: {part['ours over its fastest']:.2f}"
