"""MoCo v2 on satellite images of 13 bands (Sentinel-2 as delivered, reflectance times 10,000), ResNet-50, one GPU.

Command    moco-jax train --config=bands --config.data.folder=DIR --workdir=runs/bands
Hardware   one GPU. Not run at full size: neither time nor memory is measured. A card that is too small takes
           --config.train.microbatch_size=64: the same result in parts.
Expected   a loss above ln(K + 1) in the first epochs, then one that falls; no labels are needed.
Data       16-bit TIFF or .npy of 13 bands, larger than 224 pixels. Mean and deviation are those that SSL4EO-S12
           (arXiv:2211.07044) measured on level 1C, in the order B1 to B8, B8A, B9 to B12; moco-jax inspect DIR measures
           yours, and any other number of bands needs as many values. Several dates of a place: data.pairs="same_group".
"""

from moco_jax.config import page


def get_config():
    """The config page."""
    config = page("moco")
    config.batch_size = 256
    config.data.dataset, config.data.folder = None, "bands"
    config.data.range = (0.0, 10000.0)  # brighter values, as of clouds, become white where a gain is applied
    config.data.mean = (0.1606, 0.1391, 0.1315, 0.1364, 0.1549, 0.2092, 0.2372, 0.2300, 0.2560, 0.0830, 0.0022, 0.2177)
    config.data.mean += (0.1524,)
    config.data.std = (0.0787, 0.0850, 0.0875, 0.1139, 0.1122, 0.1162, 0.1274, 0.1248, 0.1346, 0.0577, 0.0051, 0.1336)
    config.data.std += (0.1137,)
    config.data.path, config.data.workers = "streamed", 8
    config.views.recipe, config.views.size = "bands", 224
    config.model.arch, config.model.stem, config.model.width = "resnet50", "imagenet", 64
    config.model.head, config.model.dim = "mlp", 128
    config.moco.momentum, config.moco.temperature = 0.99, 0.2
    config.queue.size = None  # up to a quarter of the images
    config.optimizer.learning_rate, config.optimizer.weight_decay = 0.03, 1e-4
    config.optimizer.schedule = "cosine"
    config.train.epochs = 100
    config.eval.every_epochs = 0  # kNN needs labels
    return config
