"""The table for handwritten digits: is the encoder of the default run worth its minute?

Command    moco-jax transfer --config=transfer_digits --encoders=runs/digits
"""

from moco_jax.pages import load


def get_config():
    """The config page."""
    config, tuned = load("transfer"), load("finetune_digits")
    config.views, config.fit = tuned.views, tuned.fit
    return config
