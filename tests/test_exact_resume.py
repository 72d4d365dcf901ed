"""`train.py` stopped and called again: the same bits on the same devices, the same run on others."""

import pytest

from benchmarks import resume
from benchmarks.resume import HERE, Layout

pytestmark = pytest.mark.long


def test_a_run_that_stops_ends_as_one_that_does_not(tmp_path):
    """Within an epoch and at its end: every leaf and every number of the log.

    `make soak` does it at every step, also with two processes; those are stopped by signals in `test_preemption`.
    """
    found = resume.exact(tmp_path, HERE[0], "streamed", [6, 8])
    assert found["same state"] == found["same log"] == found["stops"] == 2


def test_a_run_goes_on_with_other_devices(tmp_path):
    """From four devices to one, in double precision: what remains is the order of sums."""
    found = resume.elsewhere(tmp_path, HERE[0], [Layout(1, 1)], 6, dtype="float64")
    gaps = found["largest relative difference of a leaf"]["1x1"]
    assert 0 < gaps["begun elsewhere"] < 1e-10
