"""What the compiled step does not do: a second copy of the state, a collective more than it needs, a transpose."""

import re
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.gpu import hlo
from moco_jax import parallel
from moco_jax.config import BatchNorm, Moco, Queue, Shuffle
from moco_jax.core import axis
from moco_jax.models import batch_norm, resnet
from tests import tiny

COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")
NETWORK_NORMS = 9  # of the tiny ResNet: the stem, two in each of three blocks, two downsampled shortcuts


def abstract(c, devices, **options):
    """The mechanism of a config, and shapes of state, batch and data for so many devices."""
    stored = tiny.images()
    m = tiny.mechanism(c, stored, tiny.LIGHT, **options)
    ids = jax.ShapeDtypeStruct((devices, 1, c.batch_size // devices, 2), jnp.int32)
    data = {"images": jax.ShapeDtypeStruct(stored.shape, stored.dtype)}
    return m, (parallel.abstract(m.init), {"ids": ids}, data)


def collectives(c):
    """How often the step of a config, compiled for eight devices, calls each collective: {name: (calls, arrays)}."""
    m, shapes = abstract(c, 8)
    text = parallel.lowered(m.step, *shapes).compile().as_text()
    found, _ = hlo.computations(text)
    calls = Counter()
    arrays = Counter()
    for i in (i for name in found for i in found[name] if i.operation.removesuffix("-start") in COLLECTIVES):
        operation = i.operation.removesuffix("-start")
        calls[operation] += 1
        arrays[operation] += len(i.operands)
    return calls, arrays


def leaves(c):
    """Gradients, statistics of both encoders, the loss with the three figures beside it, and the uniformity."""
    state = jax.eval_shape(tiny.mechanism(c, tiny.images(), tiny.LIGHT).init)
    averaged = (state.online.params, state.online.batch_stats, state.target.batch_stats)
    return len(jax.tree.leaves(averaged)) + 5


def test_one_mean_over_devices_and_two_gathers():
    """Groups inside a device, a block over two: every leaf is reduced once, together, and nothing else is.

    One all-gather brings the raw views of a block, one the keys of the batch.
    """
    c = tiny.config(batch_size=32, bn=BatchNorm(4), shuffle=Shuffle(8), queue=Queue(64))
    calls, arrays = collectives(c)
    assert arrays["all-reduce"] == leaves(c), calls
    assert calls["all-gather"] == 2 and set(calls) == {"all-reduce", "all-gather"}, calls


@pytest.mark.parametrize(
    "c",
    [
        pytest.param(tiny.config(batch_size=32), id="moco"),
        pytest.param(tiny.config(moco=Moco(momentum=0.9, symmetric=True)), id="symmetric"),
        pytest.param(tiny.end_to_end(batch_size=32), id="end to end"),
        pytest.param(tiny.memory_bank(batch_size=32), id="bank"),
    ],
)
def test_means_are_taken_once_and_together(c, monkeypatch):
    """Whatever the backend combines: every mechanism asks once, for all of its leaves."""
    asked, mean = [], axis.mean
    monkeypatch.setattr(axis, "mean", lambda tree: asked.append(len(jax.tree.leaves(tree))) or mean(tree))
    m, shapes = abstract(c, 8)
    parallel.lowered(m.step, *shapes)
    assert len(asked) == 1 and asked[0] > len(jax.tree.leaves(shapes[0].online.params))


def test_groups_over_devices_cost_three_more_per_norm():
    """Moments of keys, of queries, and of the queries' gradient: one small reduction each."""
    inside = tiny.config(batch_size=32, bn=BatchNorm(4), shuffle=Shuffle(8), queue=Queue(64))
    across = tiny.config(batch_size=32, bn=BatchNorm(8), shuffle=Shuffle(16), queue=Queue(64))
    more = collectives(across)[1]["all-reduce"] - collectives(inside)[1]["all-reduce"]
    assert more == 3 * NETWORK_NORMS


@pytest.mark.parametrize("symmetric", [False, True])
def test_the_state_is_not_held_twice(symmetric):
    """Every byte of it is handed on: parameters of both encoders, momentum, queue, statistics, the step."""
    c = tiny.config()
    c = tiny.config(moco=type(c.moco)(momentum=0.9, temperature=0.2, symmetric=symmetric))
    m, shapes = abstract(c, 1, encoder=tiny.small_encoder(c, 3))
    ids = jax.ShapeDtypeStruct((1, 1, 16, 2), jnp.int32)
    mapped = parallel.mapped(parallel.call_of(m.step), jax.devices()[:1])
    one = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=parallel.replicated(jax.devices()[:1])), shapes[0]
    )
    plan = mapped.lower(one, {"ids": ids}, shapes[2]).compile().memory_analysis()
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes[0]))
    assert plan.alias_size_in_bytes == held


def around_convolutions(text):
    """Transposes that a convolution reads, or that read one, through casts and changes of shape."""
    made = dict(re.findall(r"(%\w+)(?::\d+)? = (?:stablehlo|func)\.([^\n]*)", text))
    uses = {name: re.findall(r"%\w+", line.split(" : ")[0]) for name, line in made.items()}
    through = ("convert", "reshape", "reverse", "pad", "slice", "broadcast_in_dim")

    def is_a(name, kind):
        return made.get(name, "").startswith(kind)

    def back(name):
        while is_a(name, through):
            name = uses[name][0]
        return name

    convolutions = [name for name in made if is_a(name, "convolution")]
    read = [back(operand) for name in convolutions for operand in uses[name]]
    after = [name for name in made if is_a(name, "transpose") and is_a(back(uses[name][0]), "convolution")]
    return convolutions, [name for name in read if is_a(name, "transpose")] + after


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_no_transpose_around_a_convolution(arch):
    """Lowered for CUDA: two forwards and two gradients of 20 or 53 convolutions, but for that of the images."""
    c = tiny.config(batch_size=16)
    c = tiny.config(model=type(c.model)(arch, "imagenet", width=4, dim=8, dtype="bfloat16"))
    m, shapes = abstract(c, 8)
    shapes[1]["ids"] = jax.ShapeDtypeStruct((8, 2, 2), jnp.int32)
    convolutions, transposes = around_convolutions(parallel.lower(m.step, shapes, platform="cuda"))
    count = {"resnet18": 20, "resnet50": 53}[arch]
    assert len(convolutions) == 4 * count - 1 and not transposes


def test_a_transpose_would_be_found():
    """In front of a convolution and behind it, through a cast."""
    numbers = ("NCHW", "HWIO", "NCHW")

    def f(x, w):
        x = x.transpose(0, 3, 1, 2).astype(jnp.bfloat16)
        return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers).transpose(0, 2, 3, 1)

    x, w = np.ones((2, 4, 4, 3), np.float32), jnp.ones((3, 3, 3, 5), jnp.bfloat16)
    convolutions, transposes = around_convolutions(jax.jit(f).lower(x, w).as_text())
    assert len(convolutions) == 1 and len(transposes) == 2


def test_gradients_are_held_where_xla_would_compute_more():
    """The barriers of batch norm's sums, of what a block's ReLU gave, and around convolutions stand in the program.

    What they save on a GPU shows in a compiled program alone: `benchmarks/gpu/program.py`.
    """

    def barriers(f, *arrays):
        gradient = jax.jit(jax.grad(lambda *a: f(*a).sum(), argnums=tuple(range(len(arrays)))))
        text = gradient.trace(*arrays).lower(lowering_platforms=("cuda",)).as_text()
        return text.count("optimization_barrier")

    maps, factor = jnp.ones((2, 3, 5, 4)), jnp.ones((2, 4))
    assert barriers(batch_norm.scaled, maps, factor, factor) == 2 and barriers(resnet.rectified_sum, maps, maps) == 1
    conv = resnet.convolution(4, 3, dtype=jnp.float32, param_dtype=jnp.float32, name="conv")
    kernel = jnp.ones((3, 3, 4, 4))
    assert barriers(lambda x, k: conv.apply({"params": {"kernel": k}}, x), maps, kernel) == 2
