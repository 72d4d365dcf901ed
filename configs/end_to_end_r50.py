"""End-to-end contrast, ResNet-50, ImageNet: the first of MoCo's three mechanisms (arXiv:1911.05722, figure 2a).

Command    moco-jax train --config=end_to_end_r50 --config.data.data_dir=DIR --workdir=runs/end_to_end
Published  figure 3 as a curve: near MoCo's while the dictionary is small; at 1,024 images, the largest batch of
           8 cards of 32 GB, two points lower unless the learning rate is scaled. Not rerun here.
Data       TFDS imagenet2012, prepared once as array_record; the error of a first try says how.
"""

from moco_jax.config import page


def get_config():
    """The config page."""
    config = page("end_to_end")
    config.batch_size = 1024  # the dictionary
    config.data.dataset, config.data.split = "imagenet2012", "train"
    config.data.channels = 3  # ImageNet holds a few gray and CMYK files
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.data.path, config.data.workers = "streamed", 16
    config.views.recipe, config.views.size = "moco_v1", 224
    config.model.arch, config.model.stem, config.model.width = "resnet50", "imagenet", 64
    config.model.head, config.model.dim = "linear", 128
    config.bn.group_size = 32
    config.end_to_end.temperature, config.end_to_end.symmetric, config.end_to_end.shared = 0.07, False, True
    config.optimizer.learning_rate = 0.12  # 0.03 for 256 images, scaled
    config.optimizer.momentum, config.optimizer.weight_decay = 0.9, 1e-4
    config.optimizer.schedule, config.optimizer.milestones = "step", (120, 160)
    config.train.epochs = 200
    config.eval.every_epochs = 20
    config.eval.bank_split, config.eval.split = "train[:10%]", "validation"
    config.eval.k, config.eval.temperature, config.eval.resize = 200, 0.1, 256
    config.leak.every_epochs = 4  # some 5,000 steps
    config.checkpoint.every_epochs = 5
    config.log.every_steps = 100
    return config
