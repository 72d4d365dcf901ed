"""Fine-tuning of a ResNet-50 on all of ImageNet (MoCo v1's paper, appendix), and the same network from scratch.

The paper names the rates, 0.03 fine-tuned and 0.1 from scratch, for batches of 256; the rest is the supervised training
of its time: 100 epochs, a tenth of the rate at 30, 60 and 90, weight decay 1e-4, groups of 32 for batch norm.

Command    moco-jax finetune --config=finetune_imagenet --checkpoint=runs/moco_v1
           --config.start=scratch --workdir=runs/scratch for the network from scratch
Published  76.5 % from scratch, 77.0 % from MoCo v1. Not rerun here.
"""

from moco_jax import protocols


def get_config():
    """The config page."""
    config = protocols.page("finetune")
    config.data.test_split = "validation"
    config.views.recipe, config.views.size, config.views.resize = "supervised", 224, 256
    fit = config.fit
    fit.batch_size, fit.epochs, fit.momentum, fit.weight_decay = 256, 100, 0.9, 1e-4
    fit.learning_rate, fit.head_learning_rate, fit.scratch_learning_rate = 0.03, 0.03, 0.1
    fit.schedule, fit.milestones, fit.milestone_factor = "step", (30, 60, 90), 0.1
    fit.batch_norm, fit.group_size = "train", 32
    return config
