"""Fine-tuning of a ResNet-50 on 1 % of ImageNet's labels, as OpenSelfSup and mmselfsup do it.

Batch 256, 20 epochs, a fifth of the rate at 12 and 16, weight decay 5e-4, batch norm over all images of a batch. They
try rates of 0.001, 0.01 and 0.1 for the body, times 1, 10 and 100 for the head, and report the best for each method:
the middle one is set here. Choose among them on train labels, not on the validation images.

Command    moco-jax finetune --config=finetune_imagenet_1percent --checkpoint=runs/moco_v2
           --config.labels=1percent.txt for the published list of images, in place of 1 % drawn by the seed
Published  top-1 33.15 % (v1) and 39.07 % (v2), 200 epochs (OpenSelfSup). Not rerun here.
"""

from moco_jax.pages import load


def get_config():
    """The config page."""
    config = load("finetune_imagenet")
    config.labels = "1%"
    fit = config.fit
    fit.epochs, fit.milestones, fit.milestone_factor, fit.weight_decay = 20, (12, 16), 0.2, 5e-4
    fit.learning_rate, fit.head_learning_rate, fit.group_size = 0.01, 0.1, 0
    return config
