"""Event files hold what the log holds: read back with tensorboardX's own format."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from moco_jax import events, logs
from moco_jax.config import ConfigError

pytest.importorskip("tensorboardX")


def read(folder):
    """Events of all files: length, its checksum, an event, its checksum, and so on."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            yield Event.FromString(data[12 : 12 + length])
            data = data[16 + length :]


def values(folder):
    """{tag: {step: number or picture}}."""
    out = {}
    for event in read(folder):
        for value in event.summary.value:
            kept = value.simple_value if value.HasField("simple_value") else value.image
            out.setdefault(value.tag, {})[event.step] = kept
    return out


def test_every_number_of_the_log_is_an_event_at_its_step(tmp_path):
    """Metrics and evaluations; what is not finite, text and events of the log are left out."""
    written = events.Events(tmp_path / "tensorboard", first_step=0)
    with logs.RunLog(tmp_path, total_steps=9, first_step=0, batch_size=1, events=written) as log:
        log.write({"event": "start", "step": 0, "images": 64})
        log.metrics(3, {"loss": 2.5, "pretext_accuracy": float("nan")})
        log.write({"step": 6, "knn_top1": 0.5, "warning": "words"})
        log.metrics(6, {"loss": 1.5, "pretext_accuracy": 0.25})
    found = values(tmp_path / "tensorboard")
    assert found.pop("images_per_second").keys() == found.pop("waiting").keys() == {3, 6}
    assert found == {"loss": {3: 2.5, 6: 1.5}, "knn_top1": {6: 0.5}, "pretext_accuracy": {6: 0.25}}
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 4


def test_a_picture_arrives_pixel_by_pixel(tmp_path):
    """As it was drawn."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "png")
    written = events.Events(tmp_path, first_step=0)
    written.picture("views", png.getvalue(), 4)
    written.close()
    found = values(tmp_path)["views"][4]
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found.encoded_image_string)).convert("RGB")), pixels)


def test_a_resumed_run_hides_what_it_repeats(tmp_path):
    """Killed after step 5, continued from step 2: TensorBoard drops the first try of steps 3 to 5."""
    from tensorboardX.proto.event_pb2 import SessionLog

    for first in (0, 2):
        written = events.Events(tmp_path, first_step=first)
        written.numbers({"step": 5, "loss": 1.0})
        written.close()
    starts = [e.step for e in read(tmp_path) if e.session_log.status == SessionLog.START]
    assert starts == [1, 3]


def test_without_tensorboardx_nothing_begins(monkeypatch):
    """One line that says what to install, before training."""
    monkeypatch.setattr(events.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'moco_jax\[tensorboard\]'"):
        events.check_installed()
