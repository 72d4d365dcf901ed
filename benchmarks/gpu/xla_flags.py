"""XLA's flags for GPUs, each alone beside none: images/s of ResNet-50 at two batches and of the CIFAR-10 step.

    python -m benchmarks.gpu.xla_flags --output=FILE.json

Each is a process of `benchmarks.gpu_suite` with its sections steps and demo. Without any flag comes first and last, and
what differs between the two is noise.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import output
from moco_jax.cli import flags

# What each is expected to do on one card, written down before anybody measured it.
FLAGS = {
    "": "what the others are held against",
    "--xla_gpu_enable_latency_hiding_scheduler=true": "nothing on one card; on several 6 % at a batch of 32 each",
    "--xla_gpu_enable_command_buffer=": "slower where kernels are short: 2 to 5 % at a batch of 32; nothing at 256",
    "--xla_gpu_enable_triton_gemm=false": "under 1 %: products are in views and loss alone",
    "--xla_gpu_autotune_level=0": "compiles in a third of the time; convolutions slower by 5 % and more",
    "--xla_gpu_exclude_nondeterministic_ops=true": "0 to 10 % slower: fewer algorithms for the filters' gradients",
    "--xla_gpu_deterministic_ops=true": "as the one before; no scatter of the step adds, so none is written out",
}
NAMED = {"sizes": ("short", "of the suite"), "output": (None, "file for the JSON, besides stdout")}


def measure(sizes: str, output_path: str | None) -> dict[str, Any]:
    """{flag: {"expected", program: images/s}}, and the first again as "none, at the end"; said and kept after each."""
    found: dict[str, Any] = {}
    for flag in [*FLAGS, ""]:
        name = flag or ("none" if not found else "none, at the end")
        found[name] = {"expected": FLAGS[flag]} | _one(flag, sizes)
        output.keep(found, output_path)
    return found


def _one(flag: str, sizes: str) -> dict[str, Any]:
    environment = os.environ | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "suite.json"
        command = [sys.executable, "-m", "benchmarks.gpu_suite", f"--sizes={sizes}", "--sections=steps,demo"]
        done = subprocess.run([*command, f"--output={path}"], env=environment, capture_output=True, text=True)
        if done.returncode:
            return {"failed": (done.stdout + done.stderr)[-500:]}
        suite = json.loads(path.read_text())
    measured = suite.get("steps", {}) | suite.get("demo", {})
    programs = {name: part for name, part in measured.items() if "images_per_second" in part}
    seconds = [part["compile_seconds"] for part in programs.values()]
    return {"card": suite["card"], "longest_compile_seconds": max(seconds)} | {
        name: part["images_per_second"] for name, part in programs.items()
    }


def main() -> int:
    """Run the command; status 2 for flags that cannot be."""
    return flags.run(command, sys.argv[1:], error_status=2)


def command(argv: Sequence[str]) -> int:
    """Measure all."""
    _, named = flags.parse_without_page(argv, places={}, named=NAMED, usage=__doc__ or "")
    measure(named["sizes"], named["output"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
