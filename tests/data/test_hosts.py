"""Processes of their own, as hosts have them, make the same global batches however many they are."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.one_host import BATCH, rows

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Twenty JPEG files of many sizes, one of which is cut short."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(20):
        picture = rng.integers(0, 256, (20 + 7 * i % 60, 24 + 5 * i, 3), np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.jpg")
    whole = (folder / "7.jpg").read_bytes()
    (folder / "7.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("hosts", "workers", "canvas"), [(4, 2, 0), (2, 1, 64)])
def test_hosts_make_the_batches_of_one(photos, hosts, workers, canvas):
    """Images, crops, what stands for the bad file; with other numbers of threads, from the middle of an epoch on."""
    wanted = rows(str(photos), 0, 1, 3, canvas)
    assert len(wanted) == 5 and all(len(set(step)) == BATCH for step in wanted)
    command = [sys.executable, "-m", "tests.data.one_host", str(photos)]
    how = {"stdout": subprocess.PIPE, "text": True, "cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    running = [subprocess.Popen([*command, *map(str, (host, hosts, workers, canvas))], **how) for host in range(hosts)]
    parts = [json.loads(process.communicate(timeout=120)[0]) for process in running]
    assert [process.returncode for process in running] == [0] * hosts
    assert [list(itertools.chain(*step)) for step in zip(*parts, strict=True)] == wanted
