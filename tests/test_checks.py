"""Numbers that must fit: each misfit in one line with the numbers and a way out, before anything is compiled."""

import dataclasses
import re

import pytest

from moco_jax import checks, dictionary
from moco_jax.config import (
    BatchNorm,
    Config,
    ConfigError,
    Data,
    EndToEnd,
    Eval,
    Leak,
    MemoryBank,
    Moco,
    Optimizer,
    Queue,
    Shuffle,
    Train,
    Views,
)
from tests import tiny


def config(**changes):
    base = Config(batch_size=256, bn=BatchNorm(32), queue=Queue(1024), shuffle=Shuffle(256))
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize(
    ("batch", "group", "block"),
    [
        (256, 32, 256),
        (512, 32, 256),
        (4096, 32, 256),
        (128, 32, 128),
        (384, 32, 192),
        (48, 16, 48),
        (64, 32, 64),
        (32, 32, 0),
        (256, 0, 0),
        (768, 96, 192),
        (512, 256, 0),
    ],
)
def test_block_resolves_to_the_largest_divisor_that_holds_two_groups(batch, group, block):
    """Never a function of the device count; 0 where no block up to 256 holds two whole groups."""
    assert checks.default_block(batch, group) == block


@pytest.mark.parametrize(
    ("records", "batch", "symmetric", "size"),
    [
        (1281167, 256, False, 65536),
        (50000, 256, False, 8192),
        (1200, 128, False, 256),
        (1200, 512, False, 512),
        (300, 128, True, 256),
        (4, 2, False, 2),
    ],
)
def test_queue_resolves_to_a_quarter_of_the_images(records, batch, symmetric, size):
    """Largest power of two up to a quarter, at most 65,536, at least the keys of a step."""
    resolved = checks.resolve(config(batch_size=batch, queue=Queue(), moco=Moco(symmetric=symmetric)), records)
    assert resolved.queue.size == size


def test_keys_of_the_queue_come_from_these_views_in_order():
    """View 1's keys; symmetric also view 0's, which are enqueued first."""
    assert dictionary.key_views(config()) == (1,) and dictionary.keys_per_step(config()) == 256
    both = config(moco=Moco(symmetric=True))
    assert dictionary.key_views(both) == (0, 1) and dictionary.keys_per_step(both) == 512


@pytest.mark.parametrize(
    ("changes", "devices", "message"),
    [
        ({"batch_size": 100}, 8, "batch_size 100 over 8 devices leaves 4 over; use 256"),
        ({"batch_size": 16}, 1, r"gives 16 images each, which bn.group_size 32 .*, or bn.group_size 8$"),
        (
            {"batch_size": 384},
            8,
            "gives 48 images each, which bn.group_size 32 .* use batch_size 256 or 512, or bn.group_size 16",
        ),
        ({"shuffle": Shuffle(96)}, 1, "shuffle.block 96 does not fit"),
        ({"shuffle": Shuffle(16)}, 1, "must hold two or more batch-norm groups of 32"),
        ({"shuffle": Shuffle(32)}, 1, "two or more batch-norm groups"),
        ({"bn": BatchNorm(0), "shuffle": Shuffle(256)}, 1, "two or more batch-norm groups of 256"),
        ({"queue": Queue(255)}, 1, "queue.size 255 is less than the 256 keys"),
        ({"queue": Queue(511), "moco": Moco(symmetric=True)}, 1, "less than the 512 keys .* symmetric"),
        (
            {"queue": Queue(1000, chunk=300)},
            1,
            "queue.chunk 300 does not divide queue.size 1000: .* 100 rows over; use 250",
        ),
        (
            {"queue": Queue(1000, chunk=2000)},
            1,
            "queue.chunk 2000 does not divide queue.size 1000: .*; use 500, another",
        ),
        ({"queue": Queue(65536, chunk=100)}, 1, "36 rows over; use 1024, another divisor"),
        ({"queue": Queue(1009, chunk=256)}, 1, "use a queue.size with larger divisors, or None for all"),
        ({"queue": Queue(1024, chunk=0)}, 1, "queue.chunk must be above 0"),
        ({"queue": Queue(1024, chunk=256), "moco": Moco(loss="nce")}, 1, "queue.chunk 256 with moco.loss='nce'"),
        ({"train": Train(microbatch_size=48)}, 1, "train.microbatch_size 48 must divide"),
        ({"train": Train(microbatch_size=16)}, 1, "whole groups of bn.group_size 32"),
        ({"train": Train(microbatch_size=8), "bn": BatchNorm(64)}, 8, "statistics over 64 images"),
        ({"train": Train(microbatch_size=32), "bn": BatchNorm(0), "shuffle": Shuffle(0)}, 1, "bn.group_size 0"),
        ({"optimizer": Optimizer(learning_rate=float("inf"))}, 1, "optimizer.learning_rate must be finite"),
        ({"data": dataclasses.replace(Config().data, mean=(float("nan"),))}, 1, "data.mean must be finite"),
        ({"optimizer": Optimizer(schedule="step", milestones=(-3,))}, 1, "milestones must rise from 1 on"),
        ({"eval": dataclasses.replace(Config().eval, resize=8)}, 1, "eval.resize 8 is less than views.size 16"),
        ({"data": dataclasses.replace(Config().data, canvas=64)}, 1, "data.canvas 64 is for data.path='streamed'"),
        (
            {"data": dataclasses.replace(Config().data, canvas=31, path="streamed")},
            1,
            "must hold two views of views.size 16 side by side: use 32 or more, or 0",
        ),
        ({"mechanism": "moko"}, 1, "mechanism 'moko' and section"),
        ({"queue": None}, 1, "section 'queue' do not belong together"),
        ({"seed": -1}, 1, "seed must lie in"),
        ({"batch_size": 0}, 1, "batch_size must be above 0"),
        ({"moco": Moco(momentum=1.5)}, 1, "moco.momentum must lie in 0..1"),
        ({"leak": Leak(every_epochs=-1)}, 1, "leak.every_epochs must be 0 or more, not -1"),
        ({"leak": Leak(margin=10.0)}, 1, "leak.margin must lie in 0..1, not 10.0"),
        ({"moco": Moco(temperature=0.0)}, 1, "moco.temperature must be above 0"),
        ({"batch_size": 100_000, "bn": BatchNorm(32)}, 1, "more than the 50000 images"),
        ({"moco": Moco(loss="nc")}, 1, "moco.loss 'nc' is unknown"),
        ({"moco": Moco(nce_batches=0)}, 1, "moco.nce_batches must be above 0"),
        ({"moco": Moco(momentum=-0.1)}, 1, "moco.momentum must lie in 0..1"),
        ({"moco": Moco(loss="nce"), "train": Train(microbatch_size=64)}, 1, "'nce' with train.microbatch_size 64"),
    ],
)
def test_misfit_is_refused_with_its_numbers(changes, devices, message):
    """One line: what, the numbers, what to do."""
    with pytest.raises(ConfigError, match=message) as error:
        checks.check(checks.resolve(config(**changes), 50000), records=50000, devices=devices)
    assert "\n" not in str(error.value)


def end_to_end(**changes):
    sections = {"mechanism": "end_to_end", "moco": None, "queue": None, "end_to_end": EndToEnd()}
    return config(**sections | changes)


def memory_bank(changes, **others):
    sections = {"mechanism": "memory_bank", "moco": None, "queue": None, "shuffle": None}
    return config(**sections | {"memory_bank": MemoryBank(**changes)} | others)


@pytest.mark.parametrize(
    ("misfit", "message"),
    [
        (end_to_end(batch_size=1, bn=BatchNorm(1), shuffle=Shuffle(0)), "batch_size 1 .* no negative.* use 2 or more"),
        (end_to_end(train=Train(microbatch_size=32)), "microbatch_size 32 .* negative of all 256 queries"),
        (end_to_end(end_to_end=EndToEnd(temperature=0.0)), "end_to_end.temperature must be above 0"),
        (end_to_end(shuffle=Shuffle(96)), "shuffle.block 96 does not fit"),
        (end_to_end(moco=Moco()), "'end_to_end' and section 'moco' do not belong together"),
        (memory_bank({"size": 1000}), "size 1000 is more than the 999 features .* each of the 1000 images of photos"),
        (memory_bank({"size": 255, "loss": "nce"}), "size 255 is less than the batch of 256.* use 256 or more"),
        (memory_bank({"size": 0}), "memory_bank.size must be above 0"),
        (memory_bank({"momentum": 1.01}), "memory_bank.momentum must lie in 0..1"),
        (memory_bank({"temperature": -1.0}), "memory_bank.temperature must be above 0"),
        (memory_bank({"loss": "softmax"}), "memory_bank.loss 'softmax' is unknown"),
        (memory_bank({"dtype": "float16"}), "memory_bank.dtype 'float16' is unknown"),
        (memory_bank({"nce_batches": 0}), "memory_bank.nce_batches must be above 0"),
        (memory_bank({"loss": "nce"}, train=Train(microbatch_size=32)), "'nce' with train.microbatch_size 32"),
    ],
)
def test_a_misfit_of_another_mechanism_is_refused_with_its_numbers(misfit, message):
    """One line: what, the numbers, what to do."""
    with pytest.raises(ConfigError, match=message) as error:
        checks.check(checks.resolve(misfit, 1000), records=1000, devices=1, name="photos")
    assert "\n" not in str(error.value)


def test_what_fits_another_mechanism_passes():
    """The largest bank, a batch of two, micro-batches of a bank; no word of queues or of a leak that cannot be."""
    for c in (
        memory_bank({"size": 999}),
        memory_bank({"size": 256, "loss": "nce"}),
        memory_bank({"momentum": 0.0}, train=Train(microbatch_size=64)),
        end_to_end(batch_size=2, bn=BatchNorm(1), shuffle=Shuffle()),
    ):
        assert checks.check(checks.resolve(c, 1000), records=1000, devices=1) == []


def test_negatives_of_a_bank_resolve_to_the_published_number_or_all():
    """4,096, every other image where there are fewer; at least one."""
    size = lambda records: checks.resolve(memory_bank({}), records).memory_bank.size  # noqa: E731
    assert (size(1281167), size(4097), size(1200), size(2)) == (4096, 4096, 1199, 1)


@pytest.mark.parametrize(
    ("batch", "group", "block", "devices", "drawn"),
    [
        (256, 32, 256, 1, 256),
        (256, 32, 0, 8, 256),  # off: what None would be
        (256, 32, 64, 8, 256),  # larger than the run's own, so that a block too small shows
        (768, 32, 0, 4, 192),  # 256 and 192 images of a device do not divide one another
        (384, 32, 128, 1, 128),  # 192 would hold one and a half of the run's own blocks
        (512, 256, 0, 1, 512),  # too large for None, yet there is another group to go to
        (1024, 32, 512, 1, 512),
        (32, 32, 0, 1, 0),  # one group
        (256, 0, 0, 1, 0),
    ],
)
def test_the_leak_alarm_draws_in_the_largest_block_that_fits(batch, group, block, devices, drawn):
    """Up to 256 images, of whole blocks of the run itself; 0 where there is nothing to permute."""
    c = config(batch_size=batch, bn=BatchNorm(group), shuffle=Shuffle(block), queue=Queue(batch))
    checks.check(c, records=50000, devices=devices)
    assert checks.leak_block(c, devices) == drawn
    if drawn:
        checks.check(dataclasses.replace(c, shuffle=Shuffle(drawn)), records=50000, devices=devices)


def test_without_a_shuffle_there_is_no_leak_alarm():
    """A mechanism that has no section shuffle."""
    assert checks.leak_block(config(shuffle=None), 1) == 0


def test_warnings_name_leak_span_and_large_queue():
    """Allowed, but not silently."""
    assert checks.check(config(), records=50000, devices=8) == []
    (leak,) = checks.check(config(shuffle=Shuffle(0)), records=50000, devices=1)
    assert "share batch statistics" in leak
    (span,) = checks.check(config(bn=BatchNorm(128)), records=50000, devices=8)
    assert "spans 4 devices of 32 images" in span
    (large,) = checks.check(config(), records=2000, devices=1)
    assert "queue.size 1024 is more than half of the 2000 images" in large
    assert "leave them out by queue.mask_same_image=True" in large
    assert checks.check(config(queue=Queue(1024, mask_same_image=True)), records=2000, devices=1) == []


def test_a_centre_crop_that_sees_little_is_warned_of():
    """256 over 224 is as published and silent; 256 over 64 is a quarter of the side, and the warning says what fits."""
    small = dataclasses.replace(Config(), views=Views(size=64))
    for c, said in (
        (dataclasses.replace(Config(), views=Views(size=224), eval=Eval(resize=256)), 0),
        (dataclasses.replace(small, eval=Eval(resize=96)), 0),
        (dataclasses.replace(small, eval=Eval(resize=256)), 1),
    ):
        found = checks.check(checks.resolve(c, 10_000), records=10_000, devices=1)
        assert len(found) == said
    assert "the centre 25% of the shorter side alone; 73 is what 256 is for 224" in found[0]


def test_same_run_may_change_paths_logging_evaluation_and_checkpoints_only():
    """What a folder holds is compared key by key with what is asked for."""
    ours = config()
    free = dataclasses.replace(ours, log=dataclasses.replace(ours.log, every_steps=3))
    free = dataclasses.replace(free, data=dataclasses.replace(ours.data, data_dir="/elsewhere"))
    free = dataclasses.replace(free, eval=dataclasses.replace(ours.eval, k=7), train=Train(microbatch_size=32))
    checks.check_same_run(free, ours, "runs/a")
    with pytest.raises(ConfigError, match=r"runs/a holds another run: moco.temperature 0.07 -> 0.2; use another"):
        checks.check_same_run(dataclasses.replace(ours, moco=Moco(temperature=0.2)), ours, "runs/a")


def test_the_images_of_a_run_may_move_but_not_change():
    """The path is free; a fingerprint that differs is refused with both counts; none on either side says nothing."""
    ours = config(data=Data(dataset=None, folder="a"))
    checks.check_same_run(config(data=Data(dataset=None, folder="b")), ours, "runs/a")
    with pytest.raises(ConfigError, match="where data lie, evaluation, logs"):
        checks.check_same_run(config(data=Data(dataset="digits")), ours, "runs/a")
    now = {"count": 20, "fingerprint": "x"}
    for stored in (None, now, {"count": 30, "fingerprint": None}):
        checks.check_same_records(now, stored, "runs/a")
    checks.check_same_records({"count": 20, "fingerprint": None}, now, "runs/a")
    for count, words in (
        (23, "23 images, and there are 20 now (3 fewer"),
        (20, "20 images, and there are 20 now (as many"),
    ):
        with pytest.raises(ConfigError, match=re.escape(f"runs/a holds a run on {words}")):
            checks.check_same_records(now, {"count": count, "fingerprint": "y"}, "runs/a")


def test_advice_can_be_followed():
    """Whatever batch size an error offers passes every check of the batch with the data and devices at hand."""
    for batch, devices, records in ((100, 1, 1200), (384, 8, 50000), (5000, 1, 1200), (1200, 1, 1200), (130, 4, 600)):
        with pytest.raises(ConfigError) as error:
            checks.check(config(batch_size=batch, shuffle=Shuffle(0)), records=records, devices=devices)
        offered = re.search(r"use (?:batch_size )?(\d+)(?: or (\d+))?", str(error.value))
        for size in filter(None, offered.groups()):
            good = checks.resolve(config(batch_size=int(size), queue=Queue(), shuffle=Shuffle()), records)
            checks.check(good, records=records, devices=devices)


def test_a_queue_that_a_large_batch_forces_is_answered_with_a_smaller_batch():
    """300 images, batch 256: the queue cannot be smaller, so "use queue.size 256" would be no advice."""
    c = checks.resolve(config(queue=Queue()), 300)
    (warning,) = checks.check(c, records=300, devices=1)
    assert "use a batch_size of 75 or less" in warning


@pytest.mark.parametrize(
    ("records", "batch", "message"),
    [
        (1, 1, "a bank of the 1 image of mine holds nothing to compare it with: give more images"),
        (32, 32, r"use 32 or more \(with 32 images: a batch_size of 31 or less\), or"),
        (64, 32, "use 32 or more, or memory_bank.loss='infonce'"),
    ],
)
def test_advice_for_a_bank_can_be_followed(records, batch, message):
    """No size that the next error would refuse."""
    section = MemoryBank(min(31, max(records - 1, 1)), loss="nce")
    c = dataclasses.replace(tiny.memory_bank(memory_bank=section), batch_size=batch)
    with pytest.raises(ConfigError, match=message):
        dictionary.check(c, records, "mine")
