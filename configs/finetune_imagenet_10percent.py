"""Fine-tuning of a ResNet-50 on 10 % of ImageNet's labels: as 1 %, with weight decay 1e-4.

Command    moco-jax finetune --config=finetune_imagenet_10percent --checkpoint=runs/moco_v2
Published  top-1 60.08 % (v1) and 61.80 % (v2), 200 epochs (OpenSelfSup). Not rerun here.
"""

from moco_jax.pages import load


def get_config():
    """The config page."""
    config = load("finetune_imagenet_1percent")
    config.labels, config.fit.weight_decay = "10%", 1e-4
    return config
