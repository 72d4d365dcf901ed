"""Linear probe of a digits encoder, and of the same encoder untrained: features made once, all labels.

Command    python eval_linear.py --config=configs/linear_digits.py --checkpoint=runs/digits
"""

from moco_jax import protocols


def get_config():
    """The config page."""
    config = protocols.page("linear")
    config.epochs, config.milestones, config.untrained = 100, (60, 80), True
    config.test_every_epochs = 20
    return config
