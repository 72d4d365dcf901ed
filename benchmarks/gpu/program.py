"""The step as XLA compiles it for an NVIDIA H200, without one: its kernels, bytes and memory, as JSON.

    pip install "jax[cuda13]"
    python -m benchmarks.gpu.program --config=moco_v2_r50 --config.batch_size=256 --output=FILE.json

XLA's compiler for GPUs needs CUDA's libraries and a description of the card, but no card. What it cannot do without one
is to try which algorithm of a convolution is fastest. So this says what the step reads, writes, keeps and counts, and
nothing of time. Resident random images; model.dtype auto is bfloat16, as on a GPU.
"""

import math
import os
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import output
from benchmarks.gpu import hlo
from moco_jax import config
from moco_jax.cli import flags

# What XLA asks of a device to compile for it: the numbers of NVIDIA's data sheet of the H200 SXM.
H200 = """
gpu_device_info {
  cuda_compute_capability { major: 9 }
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_core: 233472 shared_memory_per_block_optin: 232448
  registers_per_core_limit: 65536 registers_per_block_limit: 65536 clock_rate_ghz: 1.98
  memory_bandwidth: 4800000000000 l2_cache_size: 62914560 device_memory_size: 150754820096
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 14 }
runtime_version { major: 13 }
device_description_str: "NVIDIA H200"
"""
NAMED = {"output": (None, "file for the JSON, besides stdout"), "text": (None, "file for the compiled program")}


def compiled(run_config: config.Config) -> Any:
    """The dispatched step of a resident run for one H200, compiled. Raises ConfigError without CUDA's libraries."""
    import jax
    from jax.experimental import topologies
    from jax.sharding import NamedSharding
    from jax.sharding import PartitionSpec as P

    from benchmarks import step_time
    from moco_jax import parallel
    from moco_jax.core.axis import AXIS

    parts, steps = step_time.parts_of(run_config), run_config.train.steps_per_call
    try:
        topology = topologies.get_topology_desc(platform="cuda", target_config=H200, topology="1x1x1")
    except NotImplementedError:
        raise config.ConfigError(
            "JAX has no compiler for CUDA here: pip install 'jax[cuda13]'; no card is needed"
        ) from None
    mesh = topologies.make_mesh(topology, (1,), (AXIS,))

    def at(tree: Any, spec: P) -> Any:
        place = NamedSharding(mesh, spec)
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), tree)

    call = parallel.scanned(parts.mechanism.step)

    def on_a_device(state: Any, batch: Any, data: Any) -> Any:
        return call(state, jax.tree.map(lambda a: a[0], batch), data)

    mapped = jax.shard_map(on_a_device, mesh=mesh, in_specs=(P(), P(AXIS), P()), out_specs=(P(), P()), check_vma=False)
    state = at(jax.eval_shape(parts.mechanism.init), P())
    batch = at(jax.tree.map(lambda a: a[None], step_time.batch_of(parts, steps)), P(AXIS))
    data = at({"images": parts.source.source.images}, P())
    return jax.jit(mapped, donate_argnums=0).lower(state, batch, data).compile()


def read(text: str, images: int) -> dict[str, Any]:
    """What a compiled program of so many images moves: megabytes per image in all, by part, and by kind of kernel."""
    found = hlo.kernels(text)
    kinds: dict[str, dict[str, float]] = {}
    for kernel in found:
        kind = kinds.setdefault(kernel.operation, {"kernels": 0, "mb_per_image": 0.0})
        kind["kernels"] += 1
        kind["mb_per_image"] += kernel.bytes / images / 1e6
    largest = sorted(found, key=lambda k: -k.bytes)[:10]
    return {
        "mb_per_image": sum(k.bytes for k in found) / images / 1e6,
        "mb_per_image_by_part": {name: b / images / 1e6 for name, b in hlo.by_part(found).items()},
        "by_kind": dict(sorted(kinds.items(), key=lambda item: -item[1]["mb_per_image"])),
        "largest": [{"kernel": k.name, "mb_per_image": k.bytes / images / 1e6, "of": k.of} for k in largest],
        "float32_activations": wide_activations(text, images),
        "scatters": len(re.findall(r" scatter\(", text)),
    }


def wide_activations(text: str, images: int) -> list[str]:
    """Results of a backbone's kernels that keep float32 maps of every image: 16 pixels or more, in whatever shape.

    Parameters and their gradients are of other shapes, and partial sums much smaller than what they are sums of.
    """
    found, entry = hlo.computations(text)
    bodies = [entry, *(hlo.called(i, "body") for name in found for i in found[name] if i.operation == "while")]
    types = {i.name: i.type for name in bodies for i in found[name]}
    parameters = {_sides(s) for i in found[entry] if i.operation == "parameter" for s in F32.findall(i.type)}
    wide = []
    for i in (i for name in bodies for i in found[name] if "backbone" in i.rest and i.operation not in hlo.FREE):
        read = max((hlo.size(types.get(o, "")) for o in i.operands), default=0)
        for shape in F32.findall(i.type):
            sides = _sides(shape)
            count, channels = math.prod(sides), int(shape.split(",")[-1])
            if count >= 16 * images * channels and 4 * count >= read / 2 and sides not in parameters:
                wide.append(f"{i.name} f32[{shape}]")
    return wide


F32 = re.compile(r"\bf32\[([\d,]+)\]")


def _sides(shape: str) -> tuple[int, ...]:
    """Sizes of an array's axes, in no order."""
    return tuple(sorted(int(n) for n in shape.split(",")))


def main() -> int:
    """Run the command; status 2 for flags that cannot be."""
    return flags.run(command, sys.argv[1:], error_status=2)


def command(argv: Sequence[str]) -> int:
    """Compile what the flags say."""
    page, named = flags.parse(argv, page="moco_v2_r50", named=NAMED, usage=__doc__ or "")
    given = os.environ.get("XLA_FLAGS", "")
    flags.prepare_environment()
    os.environ["XLA_FLAGS"] = given  # what commands add is for a CPU, and compilers for GPUs fail with it
    os.environ["JAX_PLATFORMS"] = "cpu"  # or JAX looks for a card, and gives the compiler up where there is none
    page.data.path, page.data.canvas = "resident", 0
    page.model.dtype = page.model.dtype.replace("auto", "bfloat16")
    run_config = config.read(page)
    began = time.perf_counter()
    call = compiled(run_config)
    seconds, text = time.perf_counter() - began, call.as_text()
    if named["text"]:
        with open(named["text"], "w") as file:
            file.write(text)
    plan, steps = call.memory_analysis(), run_config.train.steps_per_call
    import jax

    found = {
        "compiled for": "NVIDIA H200, by its description; not run",
        "commit": output.commit(),
        "jax": jax.__version__,
        "model": run_config.model.arch,
        "batch_size": run_config.batch_size,
        "steps_per_call": steps,
        "compile_seconds": seconds,
        "planned_workspace_bytes": plan.temp_size_in_bytes,
        "planned_state_and_images_bytes": plan.argument_size_in_bytes,
        "donated_bytes": plan.alias_size_in_bytes,
        **read(text, run_config.batch_size * steps),
    }
    output.keep(found, named["output"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
