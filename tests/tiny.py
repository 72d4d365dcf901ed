"""A tiny but complete MoCo for tests: the shipped step, encoder and views on images made here."""

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moco_jax import dictionary, parallel, views
from moco_jax.config import BatchNorm, Config, EndToEnd, MemoryBank, Moco, Model, Optimizer, Queue, Shuffle, Train
from moco_jax.core import schedules
from moco_jax.core.optimizers import sgd
from moco_jax.data import loader, order
from moco_jax.data.sources import ArraySource
from moco_jax.evaluation.encoder import Preprocessing
from moco_jax.mechanisms import MECHANISMS
from moco_jax.models import encoder as encoders
from moco_jax.models import heads
from moco_jax.models.batch_norm import GroupBatchNorm
from moco_jax.state import Facts, Mechanism
from moco_jax.views.recipes import RECIPES, ColorJitter, Crop, HorizontalFlip, ViewRecipe

RECORDS, SIZE, STORED = 64, 8, 10  # images, side of a view, side of a stored image

# Compiler options where the last bit counts: as users compile, unlike most tests.
OPTIMISED = {"xla_backend_optimization_level": 3}


# Crop, a draw that changes values and one that moves them: enough where the operations are not what a test is about.
LIGHT = (ViewRecipe(Crop((0.2, 1.0)), (ColorJitter(0.4, 0.0, 0.0, 0.0, p=0.8), HorizontalFlip(0.5))),) * 2


def config(**changes: Any) -> Config:
    """Four BN groups of 4 in a batch of 16, blocks of 8, a queue that wraps inside a batch."""
    base = Config(
        batch_size=16,
        model=Model(width=4, dim=8, dtype="float32"),
        bn=BatchNorm(4),
        moco=Moco(momentum=0.9, temperature=0.2),
        queue=Queue(40),
        shuffle=Shuffle(8),
        optimizer=Optimizer(learning_rate=0.3),
        train=Train(epochs=5),
    )
    return dataclasses.replace(base, **changes)


def end_to_end(**changes: Any) -> Config:
    """The same groups and blocks; the batch is the dictionary."""
    section = EndToEnd(temperature=0.2)
    return config(**{"mechanism": "end_to_end", "moco": None, "queue": None, "end_to_end": section} | changes)


def memory_bank(**changes: Any) -> Config:
    """The same groups; twelve negatives of a bank for each query."""
    section = MemoryBank(12, momentum=0.25, temperature=0.2)
    sections = {"mechanism": "memory_bank", "moco": None, "queue": None, "shuffle": None, "memory_bank": section}
    return config(**sections | changes)


def double(c: Config) -> Config:
    """The same in float64."""
    return dataclasses.replace(c, model=dataclasses.replace(c.model, dtype="float64"))


def images(channels: int = 3, dtype: Any = np.uint8, seed: int = 0) -> np.ndarray:
    """Stored images (RECORDS, STORED, STORED, channels) in a storage dtype."""
    values = np.random.default_rng(seed).random((RECORDS, STORED, STORED, channels))
    top = np.iinfo(dtype).max if np.issubdtype(dtype, np.integer) else 1.0
    return (values * top).astype(dtype)


def tiny_encoder(c: Config, channels: int = 3) -> encoders.Encoder:
    """The tiny ResNet of a config."""
    dtype = parallel.compute_dtype(c.model.dtype)
    return encoders.from_config(c.model, c.bn, channels=channels, size=SIZE, dtype=dtype)


class SmallBackbone(nn.Module):
    """One convolution: compiles in a second, where the net is not what a test is about."""

    group_size: int | None  # None: no batch norm
    dtype: Any

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> list[jax.Array]:
        x = nn.Conv(4, (3, 3), strides=2, use_bias=False, dtype=self.dtype, param_dtype=self.dtype)(x)
        if self.group_size is not None:
            x = GroupBatchNorm(self.group_size, self.dtype, self.dtype)(x, train=train)
        return [nn.relu(x)]


def small_encoder(c: Config, channels: int, *, batch_norm: bool = True) -> encoders.Encoder:
    """An encoder of one convolution and a linear head."""
    dtype = parallel.compute_dtype(c.model.dtype)
    backbone = SmallBackbone(c.bn.group_size if batch_norm else None, dtype)
    head = heads.Linear(c.model.dim, dtype)
    return encoders.build(backbone, head, input_shape=(SIZE, SIZE, channels), label="small")


def preprocessing(size: int, channels: int, **changes: Any) -> Preprocessing:
    """What an encoder of 8-bit images expects: the whole image, -1..1."""
    normal = (0.5,) * channels
    base = Preprocessing(size, size, channels, "uint8", (0.0, 255.0), normal, normal, "float32")
    return base._replace(**changes)


def mechanism(
    c: Config,
    stored: np.ndarray,
    recipe: tuple[ViewRecipe, ...] | None = None,
    encoder: encoders.Encoder | None = None,
    **options: Any,
) -> Mechanism:
    """The shipped mechanism of a config for stored images."""
    channels = stored.shape[-1]
    top = float(np.iinfo(stored.dtype).max) if stored.dtype.kind == "u" else 1.0
    recipe = recipe or RECIPES["moco_v2" if channels == 3 else "xray" if channels == 1 else "bands"]
    return MECHANISMS[c.mechanism](
        encoder or tiny_encoder(c, channels),
        views.make(
            recipe,
            size=SIZE,
            low=0.0,
            high=top,
            mean=(0.5,) * channels,
            std=(0.25,) * channels,
            dtype=parallel.compute_dtype(c.model.dtype),
        ),
        sgd(
            schedules.learning_rate(c.optimizer, batch_size=c.batch_size, epochs=c.train.epochs, steps_per_epoch=2),
            momentum=c.optimizer.momentum,
            weight_decay=c.optimizer.weight_decay,
        ),
        c,
        Facts(RECORDS, (SIZE, SIZE, channels), 2),
        **options,
    )


def ids(step: int, batch_size: int) -> np.ndarray:
    """Records of a step: (batch_size, 2)."""
    rows = np.random.default_rng([7, step]).permutation(RECORDS)[:batch_size].astype(np.int32)
    return np.stack([rows, rows], 1)


def ring(c: Config) -> order.Ring | None:
    """What the loader has to know of the queue of a resolved config; None without one."""
    if c.queue is None or c.queue.size is None:
        return None
    return order.Ring(c.queue.size, dictionary.key_views(c))


def batches(c: Config, steps: int, start: int = 0) -> list[Any]:
    """Host batches of some steps for the resident path, with what is behind the rows of a queue."""
    rows, out, queue = functools.partial(ids, batch_size=c.batch_size), [], ring(c)
    if queue is None:
        return [{"ids": rows(step)} for step in range(start, start + steps)]
    for step in range(start, start + steps):
        behind = order.queue_ids(step, queue, rows, batch_size=c.batch_size)
        spread = np.append(behind, [-1] * (-len(behind) % c.batch_size)).reshape(c.batch_size, -1)
        out.append({"ids": rows(step), "queue_ids": spread.astype(np.int32)})
    return out


_INITIAL: dict[Any, Any] = {}


def born(m: Mechanism, over: Any) -> Any:
    """`parallel.born(m.init, over)`, from values computed once: compiling the random draws costs as much as the step.

    Initial values depend on shapes, dtypes and the seed alone; every test here keeps the seed.
    """
    shapes = jax.eval_shape(m.init)
    key = str(jax.tree.map(lambda a: (a.shape, str(a.dtype)), shapes))
    if key not in _INITIAL:
        _INITIAL[key] = jax.tree.map(np.asarray, jax.jit(m.init)())
    return parallel.born(lambda: jax.tree.map(jnp.asarray, _INITIAL[key]), over)


class Run(NamedTuple):
    """What some steps left: a host copy of the state, metrics of the last step, what was compiled at each step."""

    state: Any
    metrics: dict[str, float]
    compiled: list[list[str]]


def streamed(stored: np.ndarray, c: Config, recipe: tuple[ViewRecipe, ...], steps: int) -> list[Any]:
    """The host batches of some steps as the loader makes them on the streamed path: ids and raw views of all rows."""
    made = loader.batches(
        ArraySource(stored),
        [view.crop for view in recipe],
        path="streamed",
        seed=0,
        batch_size=c.batch_size,
        positions=np.arange(c.batch_size),
        first_step=0,
        last_step=steps,
        size=SIZE,
        workers=1,
        pairs=order.same_record,
        ring=ring(c),
    )
    return list(made)


def run(
    m: Mechanism,
    stored: np.ndarray,
    *,
    batch_size: int,
    devices: int = 1,
    steps: int = 3,
    mapped: Any = None,
    batches: list[Any] | None = None,
) -> Run:
    """Some steps on `devices` devices, of given host batches or of `ids`; the copies of the state must be identical."""
    batches = batches or [{"ids": ids(step, batch_size)} for step in range(steps)]
    over = jax.devices()[:devices]
    state = born(m, over)
    data = {"images": jax.device_put(stored, parallel.replicated(over))}
    mapped = (mapped or parallel.mapped)(m.step, over)
    metrics: dict[str, Any] = {}
    compiled: list[list[str]] = []

    def heard(name: str, duration: float, **about: Any) -> None:
        if "backend_compile" in name:
            compiled[-1].append(str(about.get("fun_name", name)))

    for rows in batches:
        batch = jax.tree.map(lambda a: a.reshape(devices, batch_size // devices, *a.shape[1:]), rows)
        compiled.append([])
        jax.monitoring.register_event_duration_secs_listener(heard)
        state, metrics = mapped(state, batch, data)
        jax.block_until_ready(state)
        jax.monitoring.unregister_event_duration_listener(heard)
    parallel.check_identical(state)
    return Run(parallel.host(state), {k: float(v) for k, v in metrics.items()}, compiled)


def distance(a: Any, b: Any) -> tuple[float, str]:
    """Largest max|a - b| / max|b| over the tensors of two trees, both zero counting as equal, and where it is.

    A nan is larger than anything.
    """
    worst, where = 0.0, ""
    leaves, others = jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)
    assert len(leaves) == len(others)
    for (path, x), y in zip(leaves, others, strict=True):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        gap = float(np.abs(x - y).max() / (np.abs(y).max() or 1.0))
        if not (gap <= worst or np.isnan(worst)):
            worst, where = gap, jax.tree_util.keystr(path)
    return worst, where
