"""What the suite found, as lines for people: numbers, and how they stand to what was aimed at.

python -m benchmarks.gpu.table FILE.json      of a run that was stopped, too
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.torch_step import VALID

# Images/s of MoCo ResNet-50 at 224 pixels in bfloat16, 256 or more per step: from published supervised rates, by the
# cost of MoCo's step.
BANDS = {
    "H200": (("record class", 5700), ("good", 4500), ("par", 3400)),
    "H100": (("record class", 4900), ("good", 4100), ("par", 3100)),
}


def of(found: dict[str, Any]) -> str:
    """All lines."""
    return "\n".join(_lines(found))


def _lines(found: dict[str, Any]) -> Iterator[str]:
    small = "; shrunken: no figure means anything" if found["sizes"] == "shrunken" else ""
    yield f"{found['card']}, JAX {found['jax']}{small}"
    for name, part in found.items():
        if isinstance(part, dict) and "failed" in part:
            yield f"{name} FAILED: {part['failed']}"
    if left := found["not_measured"]:
        begun = [f"{name} (begun: not whole)" if name in found else name for name in left]
        yield f"not measured: {', '.join(begun)}; on their own: --sections={','.join(left)} --output=ANOTHER.json"
    yield from _correct(found.get("correct", {}))
    if "copy_tb_per_second" in (part := found.get("ceilings", {})):
        yield f"ceilings: {part['copy_tb_per_second']:.2f} TB/s copied, {part['bfloat16_product_tflops']:.0f} TFLOP/s"
    yield from _steps(found["card"], found.get("steps", {}))
    for name, part in found.get("demo", {}).items():
        if isinstance(part, dict):
            yield f"CIFAR-10, {name}: {_rate(part)}"
    yield from _beside(found["card"], found.get("beside_pytorch", {}))
    for name, part in found.get("parts", {}).items():
        if "milliseconds" in part:
            yield f"{name}: {part['milliseconds']:.3f} ms"
    for size, ways in found.get("parts", {}).get("loss", {}).items():
        for way, part in ways.items():
            took, bytes_ = 1e3 * part["seconds"], part["planned_bytes"]
            yield f"loss at K = {size}, rows at once {way}: {took:.2f} ms, {bytes_:,} bytes planned"
    for kernel in found.get("profile", {}).get("ten", []):
        yield f"  {kernel['share']:6.1%}  {kernel['kernel'][:100]}"
    for name, seconds in found.get("compiling", {}).items():
        yield f"compiling, {name}: {seconds if isinstance(seconds, str) else round(seconds, 1)}"


def _correct(part: dict[str, Any]) -> Iterator[str]:
    if "all_hold" not in part:
        return
    yield f"correct: {'yes' if part['all_hold'] else 'NO'}"
    for name, check in part.items():
        if isinstance(check, dict):
            yield f"  {name}: {'holds' if check['holds'] else f'DOES NOT HOLD: {check}'}"
    if "differ between two runs" in part:
        yield f"  leaves that differ between two runs alike: {len(part['differ between two runs'])}"


def _steps(card: str, steps: dict[str, Any]) -> Iterator[str]:
    for name, part in steps.items():
        if name.startswith("batch"):
            yield f"ResNet-50, {name}: {_rate(part)}{_band(card, part) if part['batch_size'] >= 256 else ''}"
    if "fit" in steps:
        rate, cost = steps["fit"]["images_per_second_at_large_batches"], steps["fit"]["fixed_milliseconds"]
        yield f"  fit: {rate:,.0f} images/s and {cost:.1f} ms a step"
    if "program" in steps:
        over, wide = steps["program"]["bytes_over_448_mb"], steps["program"]["float32_activations"]
        yield f"  program: {over:.2f} of 448 MB an image, {len(wide)} float32 activations stored"


def _rate(part: dict[str, Any]) -> str:
    low, high = part["spread_milliseconds"]
    return f"{part['images_per_second']:,.0f} images/s, {part['step_milliseconds']:.2f} ms ({low:.2f} to {high:.2f})"


def _band(card: str, part: dict[str, Any]) -> str:
    bands = next((bands for kind, bands in BANDS.items() if kind in card), ())
    return (
        "; " + next((name for name, least in bands if part["images_per_second"] >= least), "below par") if bands else ""
    )


def _beside(card: str, found: dict[str, Any]) -> Iterator[str]:
    if "not measured" in found:
        yield f"PyTorch: not measured, {found['not measured']}"
    for name, part in found.items():
        if isinstance(part, dict):
            yield f"on ready views, {name}: {part['failed'] if 'failed' in part else _rate(part)}"
        elif isinstance(part, float):
            yield f"{name}: {part:.2f}"
    least = next((rate for kind, rate in VALID.items() if kind in card), None)
    rates = [
        part["images_per_second"]
        for name, part in found.items()
        if name.startswith("ResNet-50, PyTorch") and "grouped" not in name and "failed" not in part
    ]
    if rates and least:
        yield f"  a fair comparison: {'yes' if max(rates) >= least else f'NO, its fastest is below {least:,} images/s'}"


if __name__ == "__main__":
    print(of(json.loads(Path(sys.argv[1]).read_text())))
