"""Files of weights as `checkpoints.reading` gives them, without a file of PyTorch's and thus without torch."""

import functools

import jax
import numpy as np

from moco_jax import parallel
from moco_jax.checkpoints import reading, recognise, torch_names, weights
from moco_jax.config import ConfigError, Model
from moco_jax.core.randomness import INIT, key
from moco_jax.state import Network
from tests import tiny

MODEL = Model(arch="resnet_tiny", stem="cifar", width=4, head="mlp", dim=8)
GRAY = weights.Pixels(tiny.SIZE, tiny.SIZE, "uint8", (0.0, 255.0), (0.5,), (0.25,))


@functools.cache
def tree(model=MODEL, channels=1, seed=3):
    """{"params", "batch_stats"} of numpy, drawn by their shapes: compiling an encoder's own draws takes long."""
    rng = np.random.default_rng(seed)
    shapes = weights.shapes(model, channels, with_head=True)
    return jax.tree.map(lambda a: (0.1 + rng.random(a.shape) / np.sqrt(a.size)).astype(a.dtype), shapes)


def fresh(encoder, seed):
    """In the place of `loading._fresh`, whose draws take long to compile."""
    like = jax.eval_shape(lambda: encoder.init(key(seed, 0, INIT)))
    made = jax.tree.map(lambda a: np.full(a.shape, 0.1 + seed, a.dtype), like)
    return Network(**parallel.put_data(made))


def found(*, model=MODEL, channels=1, seed=3, head=True, dtype=np.float32, pixels=GRAY, classifier=None, ours=None):
    """What a file of the network of a seed holds."""
    named = {n: t.astype(dtype) for n, t in torch_names.to_torch(tree(model, channels, seed)).items()}
    projection = {n: named.pop(n) for n in list(named) if n.startswith("fc.")}
    encoder = weights.encoder(named, projection if head else {})
    layout = "MoCo checkpoint, the released code's, MoCo v2 (MLP head)" if head else "a ResNet in torchvision's names"
    return recognise.Found(layout, encoder, None, None, classifier, pixels, None, ours, (), "0" * 64)


def put(monkeypatch, path, what):
    """A file at `path` that reads as `what`, until it goes."""
    path.write_bytes(b"weights")
    before = reading.read

    def read(asked, **options):
        if asked != path:
            return before(asked, **options)
        if not path.exists():
            raise ConfigError(f"there is no {path}")
        return what

    monkeypatch.setattr(reading, "read", read)
    return path
