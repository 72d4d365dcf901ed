"""Fine-tuning of a digits encoder on all labels; about half a minute on two CPU cores.

Command    moco-jax finetune --config=finetune_digits --checkpoint=runs/digits
"""

from moco_jax.pages import load


def get_config():
    """The config page."""
    config = load("finetune")
    config.views.recipe = "supervised_digits"
    config.fit.epochs, config.fit.least_steps = 10, 60
    return config
