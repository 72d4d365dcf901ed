"""Batches on the host, by threads: all images at once for the resident path, one batch per step, evaluation views."""

import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import numpy as np

from moco_jax.config import ConfigError, unknown
from moco_jax.data import cutting, order, sources
from moco_jax.data.cutting import Crop

PATHS = ("resident", "streamed")
CHUNK = 256  # records decoded per task of the resident path


def resident(source: sources.Source, workers: int) -> dict[str, np.ndarray]:
    """{"images": (records, H, W, C)} in storage dtype, decoded by `workers` threads; ConfigError if sizes differ."""
    _check_workers(workers)
    first = sources.read(source, 0)
    images = np.empty((len(source), *first.shape), first.dtype)

    def fill(start: int) -> None:
        for i in range(start, min(start + CHUNK, len(images))):
            image = sources.read(source, i, like=first)
            if image.shape != first.shape:
                raise ConfigError(
                    f"{source.name}: {sources.record(source, i)} is {_size(image)} pixels and "
                    f"{sources.record(source, 0)} {_size(first)}; images of different sizes cannot be resident, use "
                    "data.path='streamed'"
                )
            images[i] = image

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(fill, range(0, len(images), CHUNK)):  # consumed, so that the first error is raised
            pass
    return {"images": images}


def batches(
    source: sources.Source,
    recipe_crops: Sequence[Crop],
    *,
    path: str,
    seed: int,
    batch_size: int,
    positions: np.ndarray,
    first_step: int,
    last_step: int,
    size: int,
    workers: int,
    pairs: order.PairRule = order.same_record,
    ring: order.Ring | None = None,
    canvas: int = 0,
) -> Iterator[dict[str, Any]]:
    """Host batches of steps first_step to last_step - 1, prefetched by `workers` threads, each making a whole batch.

    A batch is {"ids": (n, V) int32} for the n global `positions` of this host. On the streamed path also {"raw": V
    arrays (n, size, size, C)} in the storage dtype, cut as the V `recipe_crops` say; or with a `canvas` {"canvas": one
    array (n, canvas, canvas, C), or V where the pair rule may take two records, "boxes": (n, V, 4) int32}, which the
    device cuts to the same views. With a `ring` also {"queue_ids": (n, W) int32}: what `order.queue_ids` says of its K
    rows, W = ceil(K / batch_size) for each row of the global batch, the last ones -1. A step's batch does not depend on
    where the iterator starts. An error in a thread is raised by `next` and names the record; closing the iterator ends
    the threads. Raises ConfigError for an unknown `path` and where the images cannot fill a batch.
    """
    if path not in PATHS:
        raise unknown("data.path", path, PATHS)
    _check_workers(workers)
    records = len(source)
    order.steps_per_epoch(records, batch_size)
    cut = None
    if path == "streamed" and canvas:
        arrays = 1 if pairs is order.same_record else len(recipe_crops)
        cut = cutting.on_canvas(source, recipe_crops, seed, positions, size, canvas, arrays)
    elif path == "streamed":
        cut = cutting.on_host(source, recipe_crops, seed, positions, size)

    ids_of = functools.partial(order.ids, seed, records=records, batch_size=batch_size, pairs=pairs)
    behind = None if ring is None else _behind(ids_of, ring, batch_size, workers)

    def batch(step: int) -> dict[str, Any]:
        if behind is None:
            out = {"ids": ids_of(step, positions)}
        else:
            out = {name: rows[positions] for name, rows in behind(step).items()}
        return out if cut is None else {**out, **cut(step, out["ids"])}

    return _threaded(batch, first_step, last_step, workers)


def labelled_batches(
    source: sources.Source | None,
    crop: Crop | None,
    *,
    seed: int,
    rows: np.ndarray,
    batch_size: int,
    positions: np.ndarray,
    first_step: int,
    last_step: int,
    size: int,
    workers: int,
) -> Iterator[dict[str, Any]]:
    """Host batches for training on the labels of records `rows`, each of them once per epoch (`order.covered`).

    A batch is {"ids": (n, 1) int32, "real": (n,) bool}: a row that is not real fills up the last batch of an epoch.
    With a source and a crop also {"raw": one array (n, size, size, C)}, cut on the host as `batches` does.
    """
    _check_workers(workers)
    cut = None if source is None or crop is None else cutting.on_host(source, (crop,), seed, positions, size)

    def batch(step: int) -> dict[str, Any]:
        found, real = order.covered(seed, step, positions, records=len(rows), batch_size=batch_size)
        out = {"ids": rows[found].astype(np.int32)[:, None], "real": real}
        return out if cut is None else {**out, **cut(step, out["ids"])}

    return _threaded(batch, first_step, last_step, workers)


def _threaded(batch: Callable[[int], dict[str, Any]], first: int, last: int, workers: int) -> Iterator[dict[str, Any]]:
    """The batches of steps first to last - 1, made ahead by threads."""
    steps = grain.MapDataset.range(first, last).map(batch)
    options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=max(2, workers))
    return _until_closed(steps.to_iter_dataset(options))


def _behind(
    ids_of: Callable[[int, np.ndarray], np.ndarray], ring: order.Ring, batch_size: int, workers: int
) -> Callable[[int], dict[str, np.ndarray]]:
    """(step) -> {"ids": (G, V), "queue_ids": (G, W)} of the whole global batch.

    The ids of the steps that fill a queue are kept: a step then computes its own alone, as it would have to anyway.
    """
    kept = -(-ring.size // (len(ring.views) * batch_size)) + 2 + 2 * workers  # threads are some steps apart
    whole = functools.lru_cache(kept)(lambda step: ids_of(step, np.arange(batch_size)))
    width = -(-ring.size // batch_size)

    def behind(step: int) -> dict[str, np.ndarray]:
        rows = np.full(batch_size * width, -1, np.int32)
        rows[: ring.size] = order.queue_ids(step, ring, whole, batch_size=batch_size)
        return {"ids": whole(step), "queue_ids": rows.reshape(batch_size, width)}

    return behind


def centered(
    source: sources.Source, view: Callable[[np.ndarray], np.ndarray], *, batch_size: int, workers: int = 1
) -> Iterator[tuple[np.ndarray, int]]:
    """Centre views of every image in order, (batch_size, S, S, C) and how many rows are real: the tail is padded.

    `view` cuts one out of an image as stored, as `crops.center` does; `workers` threads decode. Raises ConfigError for
    an image of another dtype or channels than the first has.
    """
    _check_workers(workers)
    first = sources.read(source, 0)

    def cut(index: int) -> np.ndarray:
        return view(sources.read(source, index, like=first))

    with ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(source), batch_size):
            rows = list(pool.map(cut, range(start, min(start + batch_size, len(source)))))
            real = len(rows)
            rows += [np.zeros_like(rows[0])] * (batch_size - real)
            yield np.stack(rows), real


def _until_closed(dataset: grain.IterDataset) -> Iterator[dict[str, Any]]:
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()  # otherwise the threads live until the garbage collector finds them


def _check_workers(workers: int) -> None:
    if workers < 1:
        raise ConfigError(f"data.workers must be 1 or more, not {workers}")


def _size(image: np.ndarray) -> str:
    return f"{image.shape[0]}x{image.shape[1]}"
