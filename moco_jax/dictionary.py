"""The dictionary of negatives in numbers: what a queue, a bank or a batch holds, and what must fit."""

from moco_jax.config import Config, ConfigError, MemoryBank, Queue, unknown

LOSSES = ("infonce", "nce")
BANK_DTYPES = ("float32", "bfloat16")
DRAWN = 4096  # negatives from a bank, as published (arXiv:1805.01978)


def keys_per_step(config: Config) -> int:
    """Keys enqueued per step: the global batch, twice when symmetric."""
    return config.batch_size * len(key_views(config))


def key_views(config: Config) -> tuple[int, ...]:
    """The views whose keys a step enqueues, one after the other."""
    return (0, 1) if config.moco is not None and config.moco.symmetric else (1,)


def default_queue(config: Config, records: int) -> int:
    """Largest power of two up to a quarter of the images, at most 65,536, at least the keys of one step."""
    quarter = max(records // 4, 1)
    return max(min(1 << (quarter.bit_length() - 1), 65536), keys_per_step(config))


def default_drawn(records: int) -> int:
    """As published, or every other image where there are fewer."""
    return max(min(DRAWN, records - 1), 1)


def check(config: Config, records: int, name: str) -> list[str]:
    """Raises ConfigError where the dictionary of a resolved config does not fit its images and batch; warnings."""
    for section, found in (("moco", config.moco), ("memory_bank", config.memory_bank)):
        if found is not None:
            _check_loss(config, section, found.loss)
    if config.end_to_end is not None:
        _check_batch(config)
    if config.memory_bank is not None:
        _check_bank(config, config.memory_bank, records, name)
    return [] if config.queue is None else _check_queue(config, config.queue, records)


def _check_loss(config: Config, section: str, loss: str) -> None:
    if loss not in LOSSES:
        raise unknown(f"{section}.loss", loss, LOSSES)
    if loss == "nce" and config.train.microbatch_size is not None:
        raise ConfigError(
            f"{section}.loss='nce' with train.microbatch_size {config.train.microbatch_size}: its constant is "
            f"estimated from all {config.batch_size} queries of a step before the first gradient; use None, or "
            f"{section}.loss='infonce'"
        )


def _check_batch(config: Config) -> None:
    """End to end, the batch is the dictionary."""
    if config.batch_size < 2:
        raise ConfigError(
            f"batch_size {config.batch_size} with mechanism 'end_to_end' leaves a query no negative: they are the "
            "other images of the batch; use 2 or more, hundreds to learn"
        )
    if (size := config.train.microbatch_size) is not None:
        raise ConfigError(
            f"train.microbatch_size {size} with mechanism 'end_to_end': every key is a negative of all "
            f"{config.batch_size} queries and gets its gradient, so the batch is encoded at once; use None and a "
            "smaller batch_size, or mechanism 'moco', whose negatives are stored"
        )


def _check_bank(config: Config, bank: MemoryBank, records: int, name: str) -> None:
    size = bank.size or 0
    if bank.dtype not in BANK_DTYPES:
        raise unknown("memory_bank.dtype", bank.dtype, BANK_DTYPES)
    if records < 2:
        raise ConfigError(f"a bank of the {records} image of {name} holds nothing to compare it with: give more images")
    if size > records - 1:
        raise ConfigError(
            f"memory_bank.size {size} is more than the {records - 1} features of other images in the bank: it holds "
            f"one for each of the {records} images of {name}; use {records - 1} or less"
        )
    if bank.loss == "nce" and size < config.batch_size:
        raise ConfigError(
            f"memory_bank.size {size} is less than the batch of {config.batch_size}: NCE tells a key from as little "
            f"noise badly; use {config.batch_size} or more"
            + (
                f" (with {records} images: a batch_size of {records - 1} or less)"
                if records <= config.batch_size
                else ""
            )
            + ", or memory_bank.loss='infonce'"
        )


def _check_queue(config: Config, queue: Queue, records: int) -> list[str]:
    size, keys = queue.size or 0, keys_per_step(config)
    if size < keys:
        raise ConfigError(
            f"queue.size {size} is less than the {keys} keys enqueued per step (batch_size {config.batch_size}"
            f"{', symmetric' if keys > config.batch_size else ''}); use {keys} or more, or a smaller batch"
        )
    if queue.chunk is not None:
        _check_chunk(config, size, queue.chunk)
    if 2 * size > records and not queue.mask_same_image:
        return [
            f"queue.size {size} is more than half of the {records} images: many negatives are old keys of the very "
            f"image that is matched (own_keys in the log); use {_smaller_queue(config, records)}, or more images, or "
            "leave them out by queue.mask_same_image=True"
        ]
    return []


def _check_chunk(config: Config, size: int, chunk: int) -> None:
    """Whole chunks alone: a shorter last one would be a second program beside the first."""
    if size % chunk:
        below = largest_chunk(size, min(chunk, size // 2))
        other = f"{below}, another divisor" if below else "a queue.size with larger divisors"
        raise ConfigError(
            f"queue.chunk {chunk} does not divide queue.size {size}: it leaves {size % chunk} rows over; use {other}, "
            "or None for all rows at once"
        )
    if config.moco is not None and config.moco.loss == "nce":
        raise ConfigError(
            f"queue.chunk {chunk} with moco.loss='nce': that loss needs its constant, from all similarities, before it "
            "can use any of them; use None, or moco.loss='infonce'"
        )


def largest_chunk(size: int, most: int) -> int | None:
    """A divisor of `size`, for queue.chunk: the next up to `most`, or above; None where only over 64 turns are."""
    least = -(-size // 64)
    divisors = [chunk for chunk in range(size // 2, least - 1, -1) if size % chunk == 0]
    return next((chunk for chunk in divisors if chunk <= most), divisors[-1] if divisors else None)


def _smaller_queue(config: Config, records: int) -> str:
    default = default_queue(config, records)
    if 2 * default <= records:
        return f"queue.size {default} (None)"
    views = keys_per_step(config) // config.batch_size
    return f"a batch_size of {max(records // 4 // views, 1)} or less, since a queue holds the keys of a step"
