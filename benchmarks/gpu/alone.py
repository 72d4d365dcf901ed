"""Parts of a step by themselves, and the two ceilings of a card: what it copies, and what it multiplies."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.pages import Sizes, imagenet
from moco_jax.core.ema import ema
from moco_jax.core.optimizers import sgd
from moco_jax.models import encoder as encoders
from moco_jax.models.batch_norm import GroupBatchNorm


def seconds(function: Callable[[Any], Any], given: Any, sizes: Sizes) -> dict[str, Any]:
    """Milliseconds of `function(x)`, whose result is its next x (its arguments may be donated): median and spread."""
    x = jax.block_until_ready(function(given))

    def go(calls: int) -> float:
        nonlocal x
        began = time.perf_counter()
        for _ in range(calls):
            x = function(x)
        jax.block_until_ready(x)
        return (time.perf_counter() - began) / calls

    calls = max(1, round(sizes.repeat_seconds / max(go(2), 1e-6)))
    found = [1e3 * go(calls) for _ in range(sizes.repeats)]
    return {"milliseconds": statistics.median(found), "spread": [min(found), max(found)], "calls": calls}


def ceilings(sizes: Sizes) -> dict[str, Any]:
    """A large copy (bytes read and written) and a bfloat16 product of random matrices: TB/s and TFLOP/s."""
    copied = seconds(jax.jit(lambda x: x + 1), jnp.ones(sizes.copied // 4, jnp.float32), sizes)
    a = jax.random.normal(jax.random.key(0), (sizes.product, sizes.product), jnp.bfloat16) / sizes.product**0.5
    product = jax.jit(lambda x, a: x @ a)
    multiplied = seconds(lambda x: product(x, a), a, sizes)
    return {
        "copy_tb_per_second": 2 * sizes.copied / copied["milliseconds"] / 1e9,
        "bfloat16_product_tflops": 2 * sizes.product**3 / multiplied["milliseconds"] / 1e9,
    }


def norm_and_back(shape: tuple[int, ...]) -> tuple[Callable[[Any], Any], Any]:
    """((maps, their gradient) -> (batch norm and ReLU of the maps, their gradient), and where to begin."""
    dtype = jnp.bfloat16
    layer = GroupBatchNorm(min(32, shape[0]), dtype, jnp.float32)
    x, g = (jax.random.normal(jax.random.key(i), shape, dtype) for i in range(2))
    variables = layer.init(jax.random.key(2), x[:1], train=False)

    @jax.jit
    def both(given: Any) -> Any:
        def forward(x: jax.Array, params: Any) -> tuple[jax.Array, Any]:
            y, changed = layer.apply(variables | {"params": params}, x, train=True, mutable=["batch_stats"])
            return jax.nn.relu(y), changed

        x, g, *_ = given
        y, back, changed = jax.vjp(forward, x, variables["params"], has_aux=True)
        return y, *back(g), changed

    return both, (x, g)


def batch_norm(sizes: Sizes) -> dict[str, Any]:
    """Batch norm with ReLU, forward and backward, in groups of 32: the least it can move is 8 times its input."""
    both, start = norm_and_back(sizes.maps)
    return seconds(both, start, sizes) | {"shape": list(sizes.maps), "input_megabytes": start[0].nbytes / 1e6}


def update(sizes: Sizes) -> dict[str, Any]:
    """SGD with momentum and the target's average, of all parameters of the encoder."""
    c = imagenet(sizes, batch_size=sizes.beside)
    size = c.views.size
    encoder = encoders.from_config(c.model, c.bn, channels=3, size=size, dtype=jnp.float32)
    params = jax.jit(lambda: encoder.init(jax.random.key(0))["params"])()
    optimizer = sgd(lambda step: jnp.float32(0.03), momentum=0.9, weight_decay=1e-4)

    def move(state: Any) -> Any:
        online, target, memory = state
        target = ema(target, online, 0.999)
        online, memory = optimizer.update(jax.tree.map(lambda p: 1e-3 * p, online), memory, online, jnp.int32(0))
        return online, target, memory

    start = (params, jax.tree.map(jnp.copy, params), optimizer.init(params))
    numbers = sum(leaf.size for leaf in jax.tree.leaves(params))
    found = seconds(jax.jit(move, donate_argnums=0), start, sizes)
    return found | {"parameters": numbers, "least_megabytes": 6 * 4 * numbers / 1e6}


def top_kernels(run: Callable[[], Any], folder: str) -> dict[str, Any]:
    """The ten kernels that take most time while `run` runs, each with its share, from JAX's profiler."""
    with jax.profiler.trace(folder):
        run()
    (path,) = Path(folder).rglob("*.xplane.pb")
    planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
    gpus = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    spent: dict[str, float] = {}
    for line in (line for plane in gpus or planes for line in plane.lines):
        if line.name.startswith("Stream" if gpus else "tf_XLA"):
            for event in line.events:
                if gpus or not ("::" in event.name or event.name.startswith("end:")):  # a CPU's are of threads as well
                    spent[event.name] = spent.get(event.name, 0.0) + event.duration_ns / 1e6
    total = sum(spent.values())
    ten = sorted(spent.items(), key=lambda item: -item[1])[:10]
    return {
        "milliseconds": total,
        "kernels": len(spent),
        "ten": [{"kernel": name[:120], "milliseconds": ms, "share": ms / total} for name, ms in ten],
    }


def fit(batches: list[int], milliseconds: list[float]) -> dict[str, float]:
    """Milliseconds as a fixed cost and so much per image, by least squares: the rate of large batches, and the cost."""
    slope, cost = np.polyfit(batches, milliseconds, 1)
    return {"images_per_second_at_large_batches": float(1e3 / slope), "fixed_milliseconds": float(cost)}
