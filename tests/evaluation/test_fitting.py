"""Plans of training on labels: batches that no number of devices changes."""

import numpy as np
import pytest

from moco_jax import parallel
from moco_jax.config import ConfigError
from moco_jax.evaluation import fitting


@pytest.mark.parametrize("devices", [1, 2, 8])
@pytest.mark.parametrize(("rows", "steps", "epochs"), [(3, 1, 60), (16, 1, 60), (17, 2, 30), (60, 4, 15)])
def test_a_plan_is_the_same_on_any_devices(devices, rows, steps, epochs, monkeypatch):
    """Fewer rows than a batch are filled up; least_steps stretches the epochs."""
    monkeypatch.setattr(parallel, "device_count", lambda: devices)
    made = fitting.plan(np.arange(rows), batch_size=16, epochs=10, least_steps=60, group_size=8)
    assert (made.batch_size, made.steps_per_epoch, made.epochs, made.total) == (16, steps, epochs, steps * epochs)


def test_a_batch_that_breaks_groups_or_devices_is_refused(monkeypatch):
    """The multiple that would do is named."""
    monkeypatch.setattr(parallel, "device_count", lambda: 6)
    with pytest.raises(ConfigError, match="batch_size 16 over 6 devices .* groups of 4 images; use a multiple of 12"):
        fitting.plan(np.arange(9), batch_size=16, epochs=1, group_size=4)
    assert fitting.plan(np.arange(9), batch_size=12, epochs=1, group_size=0).total == 1
