"""MoCo v1, ResNet-50, ImageNet, 200 epochs (arXiv:1911.05722; facebookresearch/moco without flags).

Command    python train.py --config=configs/moco_v1_r50.py --config.data.data_dir=DIR --workdir=runs/moco_v1
Published  60.6 % linear top-1 (five runs of the released code: 60.8 +- 0.2), 8 V100, 53 hours. Not rerun here.
Data       TFDS imagenet2012, prepared once as array_record; the error of a first try says how.
"""

from moco_jax.config import page


def get_config():
    """The config page."""
    config = page("moco")
    config.batch_size = 256
    config.data.dataset, config.data.split = "imagenet2012", "train"
    config.data.channels = 3  # ImageNet holds a few gray and CMYK files
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.data.path, config.data.workers = "streamed", 16
    config.data.canvas = 512  # the device cuts the crops, so that the host only decodes; 0: the host does
    config.views.recipe, config.views.size = "moco_v1", 224
    config.model.arch, config.model.stem, config.model.width = "resnet50", "imagenet", 64
    config.model.head, config.model.dim = "linear", 128
    config.bn.group_size = 32  # 256 images on 8 GPUs
    config.moco.momentum, config.moco.temperature, config.moco.symmetric = 0.999, 0.07, False
    config.queue.size = 65536
    config.optimizer.learning_rate, config.optimizer.momentum, config.optimizer.weight_decay = 0.03, 0.9, 1e-4
    config.optimizer.schedule, config.optimizer.milestones = "step", (120, 160)
    config.train.epochs = 200
    config.eval.every_epochs = 20
    config.eval.bank_split, config.eval.split = "train[:10%]", "validation"
    config.eval.k, config.eval.temperature, config.eval.resize = 200, 0.1, 256
    config.leak.every_epochs = 1  # some 5,000 steps
    config.checkpoint.every_epochs = 5
    config.log.every_steps = 100
    return config
