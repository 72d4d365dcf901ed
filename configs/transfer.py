"""The table for labelled images of your own: was pretraining worth it?

Command    moco-jax transfer --encoders=runs/mine,runs/other --config.data.dataset=labelled.csv
           --config.finetune=False leaves out whole networks, which take most of the time
"""

from moco_jax import protocols
from moco_jax.pages import load


def get_config():
    """The config page."""
    config, tuned = protocols.page("transfer"), load("finetune")
    config.views, config.fit = tuned.views, tuned.fit
    return config
