"""Linear classification on ImageNet with a frozen ResNet-50: facebookresearch/moco, main_lincls.py.

Command    moco-jax eval-linear --config=linear_imagenet --checkpoint=runs/moco_v2
           A sweep costs one pass: --config.learning_rates="(30.0, 10.0, 3.0)" --config.holdout=0.02
Published  60.6 % (v1, 200 epochs), 67.5 % (v2, 200 epochs), 71.1 % (v2, 800 epochs): the best of 100 epochs on the
           validation images. Not rerun here; the last epoch is the headline, and the best stands beside it.
"""

from moco_jax import protocols


def get_config():
    """The config page."""
    config = protocols.page("linear")
    config.data.test_split = "validation"
    config.batch_size, config.epochs = 256, 100
    config.learning_rates, config.momentum, config.weight_decay = (30.0,), 0.9, 0.0
    config.schedule, config.milestones = "step", (60, 80)
    config.views.recipe, config.views.size, config.views.resize = "supervised", 224, 256
    return config
