"""Linear classification on CIFAR-10 with a frozen encoder, on augmented views of the size that it was trained on.

Command    moco-jax eval-linear --config=linear_cifar10 --checkpoint=runs/cifar10
Published  90.7 % for the notebook's symmetric encoder of 800 epochs, with this rate, decay and number of epochs; it
           names no other setting, so the rest is that of ImageNet. Not rerun here.
"""

from moco_jax.pages import load


def get_config():
    """The config page."""
    config = load("linear_imagenet")
    config.data.dataset, config.data.train_split, config.data.test_split = "cifar10", "train", "test"
    config.views.size, config.views.resize = None, None
    return config
