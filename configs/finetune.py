"""Fine-tuning of any run's encoder on all its labels, and its answer on a test split.

Command    moco-jax finetune --checkpoint=runs/mine --config.data.dataset=labelled.csv
           --config.labels=10 --config.draws=10 for ten draws of ten labels per class
"""

from moco_jax import protocols


def get_config():
    """The config page."""
    config = protocols.page("finetune")
    config.views.recipe = "supervised"
    config.fit.batch_size, config.fit.epochs, config.fit.least_steps = 64, 30, 200
    config.fit.learning_rate, config.fit.head_learning_rate, config.fit.scratch_learning_rate = 0.03, 0.3, 0.1
    return config
