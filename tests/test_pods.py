"""docs/pods.md: its recipes can be read by those they are for, and its table is what its formulas give."""

import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from moco_jax import config, pages

PAGE = (Path(__file__).parents[1] / "docs" / "pods.md").read_text()
DEVICES = (8, 64, 256, 1024)


def blocks(language):
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def table():
    """{first cell: numbers} of the rows with a number for each of four device counts."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("|")]
    return {
        name: [float(c.replace(",", "")) for c in cells]
        for name, *cells in rows
        if len(cells) == len(DEVICES) and all(re.fullmatch(r"[\d.,]+", c) for c in cells)
    }


def reckoned(n):
    """The column of n devices, by the formulas below the table."""
    images, keys_in_queue, nodes = 32, 65_536, n / 8
    batch, p = images * n, 27.97e6 * 4
    keys, sent, latency = batch * 128 * 4, 2 * p * (n - 1) / n, 45e-6 + 10e-6 * math.log2(nodes)
    state, block, compute = 3 * p + keys_in_queue * (128 + 1) * 4, 256 * 224 * 224 * 3, images / 4200 + 4e-3
    inside = 2 * p * 7 / 8 / 370e9
    across = 1.15 * max(inside, 2 * p / 8 * (nodes - 1) / nodes / 40e9) + 4 * latency
    reduce = inside if nodes == 1 else across
    tpu = sent / (90e9 if n == 8 else 180e9) + (0.21e-3 if n > 256 else 0)
    gather = latency + keys / 370e9 + (keys / 8 / 40e9 if nodes > 1 else 0)
    step = compute + reduce / 4 + gather + 0.01 * compute * math.sqrt(2 * math.log(n))
    return {
        "devices n": n,
        "global batch G = 32 n": batch,
        "steps of an epoch of ImageNet": 1_281_167 // batch,
        "state per device, MB": state / 1e6,
        "memory per device, GB": (state + p + 41.4e6 * images + block) / 1e9,
        "gradients sent and received per device, MB": sent / 1e6,
        "keys gathered per device, MB": keys / 1e6,
        "images gathered for the shuffle, MB: blocks of 256, 8 bits": block / 1e6,
        "... if the whole batch were gathered, float32 (not done)": batch * 224 * 224 * 3 * 4 / 1e6,
        "all-reduce of the gradients, H200 nodes, ms": reduce * 1e3,
        "... TPU v5e, 1,024 as four slices, ms": tpu * 1e3,
        "step, H200 nodes, ms": step * 1e3,
        "images per second, thousands": batch / step / 1e3,
        "JPEG read, GB/s": batch / step * 110e3 / 1e9,
    }


def test_the_table_is_what_the_formulas_give():
    """Every row, to half a unit of the last digit that is written."""
    written, columns = table(), [reckoned(n) for n in DEVICES]
    assert written.keys() == columns[0].keys()
    cells = {line.split("|")[1].strip(): line for line in PAGE.splitlines() if line.startswith("| ")}
    for name, numbers in written.items():
        for column, (number, want) in enumerate(zip(numbers, (c[name] for c in columns), strict=True)):
            text = cells[name].split("|")[2 + column]
            digits = len(text.strip().partition(".")[2])
            assert abs(number - want) <= 0.5 * 10**-digits, (
                f"{name}, {DEVICES[column]} devices: {number}, not {want:.4g}"
            )


def test_recipes_name_keys_and_pages_that_exist():
    """What a reader copies is accepted."""
    text = "\n".join(blocks("bash") + blocks("yaml"))
    named = set(re.findall(r"--config\.([\w.]+)=", text))
    assert {"batch_size", "optimizer.linear_scaling", "data.workers"} <= named
    assert named <= config.flat(config.Config()).keys()
    found = set(re.findall(r"--config=(\w+)", text))
    assert found and all(pages.find(name) for name in found)


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
@pytest.mark.parametrize("script", blocks("bash"), ids=lambda s: re.findall(r"\w+", s)[0])
def test_shell_recipes_are_shell(script):
    """Quotes, continued lines and loops are closed."""
    done = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_the_jobset_gives_every_pod_its_place():
    """Four pods, four processes, one address of the first, each its index; a disk that all have."""
    (document,) = map(yaml.safe_load, blocks("yaml"))
    (job,) = document["spec"]["replicatedJobs"]
    spec = job["template"]["spec"]
    assert spec["parallelism"] == spec["completions"] == 4 and spec["completionMode"] == "Indexed"
    (container,) = spec["template"]["spec"]["containers"]
    places = {entry["name"]: entry.get("value") for entry in container["env"]}
    host = f"{document['metadata']['name']}-{job['name']}-0-0.{document['metadata']['name']}"
    assert places["JAX_COORDINATOR_ADDRESS"].split(":")[0] == host
    assert places["JAX_NUM_PROCESSES"] == "4" and "JAX_PROCESS_ID" in places
    assert spec["template"]["spec"]["volumes"][0]["name"] == container["volumeMounts"][0]["name"]
    assert all(isinstance(a, str) for a in container["command"] + container["args"])
