"""The table for the 10,000 CIFAR-10 images that `cifar10_small` pretrains on: 10, 100 and all labels per class.

Command    moco-jax transfer --config=transfer_cifar10 --encoders=runs/cifar10
"""

from moco_jax.pages import load


def get_config():
    """The config page."""
    config = load("transfer")
    config.data.dataset, config.data.train_split, config.data.test_split = "cifar10", "train[:10000]", "test"
    config.labels = ("10", "100")
    return config
