"""What a sweep of learning rates costs: steps of the linear probe with several rates over steps with one, as JSON.

    python -m benchmarks.probe_rates --config=cifar10_small --rates=8 --output=benchmarks/results/probe_rates.json

The encoder of a run's page with random weights, augmented views of random resident images, batches of 256. Both probes
are compiled once and then timed in turn, `repeats` times `steps` steps each; the medians are compared.
"""

import statistics
import sys
import time
from typing import Any

from benchmarks import output
from moco_jax import config
from moco_jax.cli import flags

NAMED = {
    "rates": (8, "learning rates of the sweep"),
    "classes": (10, "classes"),
    "batch": (256, "images per step"),
    "steps": (4, "steps per repeat"),
    "repeats": (5, "repeats; the medians count"),
    "output": (None, "file for the JSON, besides stdout"),
}


def measure(c: config.Config, *, rates: int, classes: int, batch: int, steps: int, repeats: int) -> dict[str, Any]:
    """Milliseconds of a step with one rate and with `rates`, and their ratio."""
    import jax
    import numpy as np

    from moco_jax import assembly, parallel
    from moco_jax.data.sources import ArraySource
    from moco_jax.state import Network

    side, channels = c.views.size, len(c.data.mean)
    images = np.random.default_rng(0).integers(0, 256, (512, side, side, channels), np.uint8)
    parts = assembly.assemble(c, source=ArraySource(images, name="random"))
    network = Network(**jax.tree.map(np.asarray, parts.encoder.init(jax.random.key(0))))
    labels = (np.arange(len(images)) % classes).astype(np.int32)
    data = parallel.put_data({"images": images, "labels": labels, "encoder": network})
    rows = np.arange(len(parallel.positions(batch)), dtype=np.int32)[:, None] % len(images)
    placed = parallel.put_batch({"ids": rows[None], "real": np.ones((1, len(rows)), bool)})
    steppers = {count: _stepper(parts.encoder, c, classes, count) for count in (1, rates)}
    states = {count: parallel.born(init) for count, (init, _) in steppers.items()}
    seconds: dict[int, list[float]] = {1: [], rates: []}
    for repeat in range(repeats + 1):  # the first compiles
        for count, (_, step) in steppers.items():
            start = time.perf_counter()
            for _ in range(steps):
                states[count], _ = step(states[count], placed, data)
            jax.block_until_ready(states[count])
            if repeat:
                seconds[count].append((time.perf_counter() - start) / steps)
    one, several = (1e3 * statistics.median(seconds[count]) for count in (1, rates))
    return {
        "devices": parallel.describe(),
        "jax": jax.__version__,
        "encoder": parts.encoder.label,
        "view": side,
        "batch_size": batch,
        "rates": rates,
        "step_milliseconds": {"1": one, str(rates): several},
        "ratio": several / one,
    }


def _stepper(encoder: Any, c: config.Config, classes: int, count: int) -> Any:
    """(init, mapped step) of a probe on augmented views with `count` rates."""
    import jax
    import numpy as np

    from moco_jax import parallel, views
    from moco_jax.core import schedules
    from moco_jax.evaluation import classifier

    made = views.make(
        views.recipes.get("supervised", len(c.data.mean)),
        size=c.views.size,
        low=0.0,
        high=255.0,
        mean=c.data.mean,
        std=c.data.std,
        dtype=parallel.compute_dtype(c.model.dtype),
    )
    blank = jax.ShapeDtypeStruct((1, c.views.size, c.views.size, len(c.data.mean)), np.float32)
    network = jax.eval_shape(encoder.init, jax.random.key(0))
    found = jax.eval_shape(encoder.features, network["params"], network["batch_stats"], blank)
    task = classifier.linear(
        classifier.frozen_features(encoder, classifier.views_of(made, 0), "backbone"),
        seed=0,
        width=found["backbone"].shape[1],
        classes=classes,
        rates=tuple(30.0 / 2**i for i in range(count)),
        schedule=schedules.cosine(1.0, epochs=100, steps_per_epoch=100),
        momentum=0.9,
        weight_decay=0.0,
    )
    return task.init, parallel.map_step(task.step)


def main() -> int:
    """Measure what the flags say."""
    page, named = flags.parse(sys.argv[1:], page="cifar10_small", named=NAMED, usage=__doc__ or "")
    flags.prepare_environment()
    numbers = {name: named[name] for name in ("rates", "classes", "batch", "steps", "repeats")}
    output.keep(measure(config.read(page), **numbers), named["output"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
