"""Is it learning? A run's own log, read without labels: what became of it, why, and which config key to change."""

import math
from typing import NamedTuple

from moco_jax.config import Config
from moco_jax.reports.runs import Run

LEARNING, COLLAPSED, LEAKING = "learning", "collapsed", "leaking"
LARGE_QUEUE, STARVED, EARLY = "K too large for the data", "starved for data", "too early to say"

# Each limit with its reason; docs/verdict.md holds the runs behind the numbers (`python -m benchmarks.verdicts`).
BEGUN = 0.1  # share of the steps before which a run still going is not judged: at first every loss rises to chance
LATE = 0.1  # share of the steps done whose mean stands for the end: one line alone is a noisy batch
UNIFORM = -0.05  # uniformity above: keys within nine degrees. Untrained -0.25, healthy below -1.8, collapsed 0.00
RANK = 1.5  # keys on one line have effective rank 1: collapsed by a rate of 30 1.0 to 1.1, healthy above 3.8
OWN_KEYS = 0.5  # own old keys per query, as K = images gives: every other query must leave a key of its own image
STALE = 0.5  # cosine of the oldest stored keys with today's: 60 degrees off, no longer keys of one dictionary
FEW_IMAGES = 100  # so few others to be told from; published runs have tens of thousands, and 300 digits still teach
AT_CHANCE = 0.95  # share of ln(K+1): a loss that stays above it was not trained, or not for long enough
PATIENCE = 0.5  # share of the steps before which a loss at chance is no verdict: healthy runs stay there up to a tenth
NCE_BATCHES = 64  # that estimate the constant of NCE: by one, of untrained features, nothing was learned at any rate
MOMENTUM = 0.9  # MoCo, section 4.1 (ablation of momentum): at 0.9 accuracy falls far, at 0 training fails


class Verdict(NamedTuple):
    """What became of a run: one of the words above, a sentence with numbers, and what to do ("" for nothing)."""

    kind: str
    cause: str
    advice: str

    @property
    def text(self) -> str:
        """All of it in a line or two."""
        return f"{self.kind}: {self.cause}" + (f"; {self.advice}" if self.advice else "")


def of(run: Run) -> Verdict:
    """The verdict on a run by its log so far; what an older log lacks is not looked at, or is computed where it can be.

    In this order, as each may hide the next: diverged, too early, collapsed, leaking, few images, K, chance, learning.
    """
    losses = run.series.get("loss", {})
    if losses and math.isnan(losses[max(losses)]):
        return Verdict(
            COLLAPSED,
            f"the loss was no number at step {max(losses)}",
            f"begin anew with an optimizer.learning_rate below {run.config.optimizer.learning_rate:g}",
        )
    if len(losses) < 2 or (not run.complete and run.step < BEGUN * run.total):
        return Verdict(
            EARLY, f"{run.step} of {run.total} steps are logged, judged is from {math.ceil(BEGUN * run.total)} on", ""
        )
    for look in (_collapsed, _leaking, _few_images, _large_queue, _at_chance):
        if (found := look(run)) is not None:
            return found
    return Verdict(LEARNING, _healthy(run), "")


def late(run: Run, name: str) -> float | None:
    """Mean of a logged number over the last tenth of the steps done, its last value at least; None where unlogged."""
    values = {step: v for step, v in run.series.get(name, {}).items() if not math.isnan(v)}
    if not values:
        return None
    chosen = [v for step, v in values.items() if step > (1 - LATE) * run.step or step == max(values)]
    return sum(chosen) / len(chosen)


def own_keys(run: Run) -> float | None:
    """A query's own old keys among its negatives, on average: as logged, else from K and the number of images.

    An epoch is a permutation: the queue holds r = K / images epochs, of which r^2 / 2 (r < 1) or r - 1/2 are of the
    same image; two keys an image and step are twice as many of half an r.
    """
    if (logged := late(run, "own_keys")) is not None:
        return logged
    queue, moco = run.config.queue, run.config.moco
    if queue is None or queue.size is None or run.images is None:
        return None
    views = 2 if moco is not None and moco.symmetric else 1
    share = queue.size / views / run.images
    return views * (share**2 / 2 if share < 1 else share - 0.5)


def _collapsed(run: Run) -> Verdict | None:
    uniformity, rank = late(run, "uniformity"), late(run, "effective_rank")
    flat, line = uniformity is not None and uniformity > UNIFORM, rank is not None and rank < RANK
    if not (flat or line):
        return None
    measured = []
    if uniformity is not None and flat:
        measured.append(f"uniformity {round(uniformity, 2) + 0.0:.2f} (limit {UNIFORM:g})")  # + 0.0: no -0.00
    if rank is not None and line:
        measured.append(f"effective rank {rank:.1f} (limit {RANK:g})")
    cause = f"all images have nearly the same key: {' and '.join(measured)}{_loss(run)}"
    moco, rate = run.config.moco, run.config.optimizer.learning_rate
    if (constant := _constant(run)) is not None:
        advice = constant
    elif moco is not None and moco.momentum < MOMENTUM:
        advice = f"moco.momentum is {moco.momentum:g}, so that keys change faster than the queue: set 0.99 or more"
    else:
        advice = f"optimizer.learning_rate is {rate:g}: begin anew with a tenth of it"
    return Verdict(COLLAPSED, cause, advice)


def _leaking(run: Run) -> Verdict | None:
    leaks, margin = run.series.get("leak", {}), run.config.leak.margin
    if not leaks or not leaks[max(leaks)] > margin:
        return None
    at = max(leaks)
    own, other = (run.series.get(f"pretext_{name}", {}).get(at, math.nan) for name in ("own", "reshuffled"))
    now, group = run.config.shuffle.block if run.config.shuffle else 0, run.config.bn.group_size
    fits = f"the largest divisor of batch_size {run.config.batch_size} up to 256 that is a multiple of {group}"
    return Verdict(
        LEAKING,
        f"pretext accuracy falls from {own:.1%} to {other:.1%} where keys are encoded among other images (leak.margin "
        f"{margin:g}): batch statistics, not images, tell a query its key",
        f"shuffle.block is {now} with bn.group_size {group}: begin anew with shuffle.block=None, {fits}",
    )


def _large_queue(run: Run) -> Verdict | None:
    queue, images = run.config.queue, run.images
    if queue is None or queue.size is None:
        return None
    filled, own, cosine = late(run, "queue_filled"), own_keys(run), late(run, "key_cosine_100")
    smaller = f"set queue.size below {queue.size}, half the images at most" + (f" ({images // 2})" if images else "")
    if own is not None and own >= OWN_KEYS and not queue.mask_same_image:
        return Verdict(
            LARGE_QUEUE,
            f"queue.size {queue.size}{f' for {images} images' if images else ''} holds {own:.1f} old keys of a query's "
            f"own image as negatives (limit {OWN_KEYS:g}): the key to find is one of {1 + own:.1f} of the same image",
            f"{smaller}, or queue.mask_same_image=True",
        )
    if run.complete and filled is not None and filled < 1:
        return Verdict(
            LARGE_QUEUE,
            f"the whole run filled {filled:.0%} of queue.size {queue.size}: the rest are random vectors",
            f"{smaller}, or train.epochs above {run.config.train.epochs}",
        )
    if cosine is not None and cosine < STALE:
        return Verdict(
            LARGE_QUEUE,
            f"the oldest keys of queue.size {queue.size} have cosine {cosine:.2f} with what today's target says of "
            f"their images (limit {STALE:g})",
            f"set queue.size below {queue.size}, or moco.momentum nearer to 1",
        )
    return None


def _few_images(run: Run) -> Verdict | None:
    """Before K: with so few images no queue that holds a step's keys is short enough."""
    if run.images is None or run.images >= FEW_IMAGES:
        return None
    begun = "" if run.config.train.init_from else ", or start from a trained encoder (train.init_from)"
    return Verdict(
        STARVED,
        f"{run.images} images (limit {FEW_IMAGES}) are seen {run.step * run.config.batch_size / run.images:.0f} times "
        "each: telling so few apart teaches little",
        f"give more images ({_where(run.config)}){begun}",
    )


def _at_chance(run: Run) -> Verdict | None:
    at_chance, loss = run.chance, late(run, "loss")
    if at_chance is not None and loss is not None and loss > AT_CHANCE * at_chance:
        if run.step < PATIENCE * run.total:
            return Verdict(EARLY, f"after {run.step} steps the loss is {loss:.2f}, still chance ({at_chance:.2f})", "")
        return Verdict(
            STARVED,
            f"after {run.step} steps the loss is {loss:.2f}, which is chance ({at_chance:.2f}), and keys are "
            "not all alike: nothing is learned yet",
            _constant(run)
            or (
                f"begin anew with train.epochs above {run.config.train.epochs} or {_faster(run.config)}, or more images"
                if run.complete
                else f"wait, or begin anew with {_faster(run.config)}, or more images"
            ),
        )
    return None


def _constant(run: Run) -> str | None:
    """What to do where NCE has the constant of untrained features, and the loss lies above chance."""
    loss = late(run, "loss")
    for name, section in (("moco", run.config.moco), ("memory_bank", run.config.memory_bank)):
        if section is None or section.loss != "nce" or section.nce_batches >= NCE_BATCHES:
            continue
        if loss is not None and run.chance is not None and loss > run.chance:
            return (
                f"{name}.nce_batches is {section.nce_batches}, so that Z is that of untrained features and stays so: "
                f"begin anew with {NCE_BATCHES} or more"
            )
    return None


def _faster(config: Config) -> str:
    """The rate that was too low, and what became of it: small batches make it tiny where it is scaled."""
    optimizer, share = config.optimizer, config.batch_size / 256
    scaled = f" ({optimizer.learning_rate * share:g} by optimizer.linear_scaling)" if optimizer.linear_scaling else ""
    return f"optimizer.learning_rate above {optimizer.learning_rate:g}{scaled}"


def _where(config: Config) -> str:
    """The key that says where the images are."""
    return next((f"data.{k}" for k in ("folder", "manifest", "array") if getattr(config.data, k)), "data.split")


def _healthy(run: Run) -> str:
    """What speaks for a run, as far as it is logged."""
    said = [f"loss {loss:.2f}"] if (loss := late(run, "loss")) is not None else []
    if said and (at_chance := run.chance) is not None:
        said[0] += f" is below chance ({at_chance:.2f})"
    positive, negative = late(run, "positive_similarity"), late(run, "negative_similarity")
    if positive is not None and negative is not None:
        said.append(f"positives have cosine {positive:.2f} and negatives {negative:.2f}")
    if (rank := late(run, "effective_rank")) is not None:
        said.append(f"effective rank {rank:.1f}")
    if len(knn := run.series.get("knn_top1", {})) > 1:
        said.append(f"kNN went from {knn[min(knn)]:.1%} to {knn[max(knn)]:.1%}")
    if not run.series.get("leak") and run.config.shuffle is not None:
        said.append("no leak was looked for (leak.every_epochs)")
    return ", ".join(said)


def _loss(run: Run) -> str:
    loss, at_chance = late(run, "loss"), run.chance
    return "" if loss is None or at_chance is None else f", loss {loss:.2f} (chance: {at_chance:.2f})"
