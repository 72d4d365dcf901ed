"""MoCo v2 on your own photos: a folder of images, with or without class folders, ResNet-50 at 224 pixels, one GPU.

Command    moco-jax train --config=photos --config.data.folder=DIR --workdir=runs/photos
Hardware   one GPU. Not run at full size: neither time nor memory is measured. A card that is too small takes
           --config.train.microbatch_size=64 (the same result in parts) or --config.model.arch=resnet18.
Expected   a loss above ln(K + 1) in the first epochs, then one that falls; no labels are needed. With class folders,
           --config.eval.every_epochs=10 watches kNN on labels, once eval.bank_split and eval.split name two splits.
"""

from moco_jax.config import page


def get_config():
    """The config page."""
    config = page("moco")
    config.batch_size = 256
    config.data.dataset, config.data.folder = None, "photos"
    config.data.channels = 3  # a few gray or CMYK files among colour are converted
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's
    config.data.path, config.data.workers = "streamed", 8
    config.views.recipe, config.views.size = "moco_v2", 224
    config.model.arch, config.model.stem, config.model.width = "resnet50", "imagenet", 64
    config.model.head, config.model.dim = "mlp", 128
    # 0.99 as on CIFAR-10's 50,000 images; 0.999 as on ImageNet, where an epoch has thousands of steps.
    config.moco.momentum, config.moco.temperature = 0.99, 0.2
    config.queue.size = None  # up to a quarter of the images
    config.optimizer.learning_rate, config.optimizer.weight_decay = 0.03, 1e-4
    config.optimizer.schedule = "cosine"
    config.train.epochs = 200
    config.eval.every_epochs = 0  # kNN needs labels
    config.eval.resize = 256
    return config
