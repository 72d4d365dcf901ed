"""Fine-tuning of a digits encoder on all labels; about 40 s on two CPU cores.

Command    moco-jax finetune --config=finetune_digits --checkpoint=runs/digits
"""

from moco_jax import protocols


def get_config():
    """The config page."""
    config = protocols.page("finetune")
    config.views.recipe = "supervised_digits"
    config.fit.batch_size, config.fit.epochs, config.fit.least_steps = 64, 10, 60
    config.fit.learning_rate, config.fit.head_learning_rate, config.fit.scratch_learning_rate = 0.03, 0.3, 0.1
    return config
