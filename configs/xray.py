"""MoCo v2 on X-rays: one channel of 16 bits, brightness, contrast and blur, nothing mirrored; ResNet-18, one GPU.

Command    moco-jax train --config=xray --config.data.folder=DIR --workdir=runs/xray
Hardware   one GPU. Not run at full size: neither time nor memory is measured.
Expected   a loss above ln(K + 1) in the first epochs, then one that falls; no labels are needed.
Data       16-bit PNG or TIFF of one channel. Set data.range to the values that mean black and white: (0, 4095) for 12
           bits. 8-bit files need --config.data.range=None. Mean and deviation are placeholders: moco-jax inspect DIR
           measures them. Several images of a patient are closer than any crop: data.pairs="same_group".
"""

from moco_jax.config import page


def get_config():
    """The config page."""
    config = page("moco")
    config.batch_size = 256
    config.data.dataset, config.data.folder = None, "xrays"
    config.data.range = (0.0, 65535.0)
    config.data.mean, config.data.std = (0.5,), (0.25,)
    config.data.path, config.data.workers = "streamed", 8
    config.views.recipe, config.views.size = "xray", 224
    config.model.arch, config.model.stem, config.model.width = "resnet18", "imagenet", 64  # as MoCo-CXR, 2010.05352
    config.model.head, config.model.dim = "mlp", 128
    config.moco.momentum, config.moco.temperature = 0.99, 0.2
    config.queue.size = None  # up to a quarter of the images
    config.optimizer.learning_rate, config.optimizer.weight_decay = 0.03, 1e-4
    config.optimizer.schedule = "cosine"
    config.train.epochs = 200
    config.eval.every_epochs = 0  # kNN needs labels
    return config
