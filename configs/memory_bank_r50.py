"""A memory bank, ResNet-50, ImageNet: the second of the MoCo paper's three mechanisms (arXiv:1911.05722, figure 2b).

Command    moco-jax train --config=memory_bank_r50 --config.data.data_dir=DIR --workdir=runs/memory_bank
           As first published (arXiv:1805.01978): --config.memory_bank.loss=nce --config.memory_bank.size=4096
Published  58.0 % linear top-1 with 65,536 negatives and InfoNCE, 2.6 below MoCo; 54.3 with NCE and 4,096. Not rerun.
Memory     the bank is 656 MB on every device (328 with --config.memory_bank.dtype=bfloat16); what a step draws is 34 MB
           for each image with 65,536 negatives (1.1 GB for 32 images a device; train.microbatch_size makes it less).
Data       TFDS imagenet2012, prepared once as array_record; the error of a first try says how.
"""

from moco_jax.config import page


def get_config():
    """The config page."""
    config = page("memory_bank")
    config.batch_size = 256
    config.data.dataset, config.data.split = "imagenet2012", "train"
    config.data.channels = 3  # ImageNet holds a few gray and CMYK files
    config.data.mean, config.data.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    config.data.path, config.data.workers = "streamed", 16
    config.views.recipe, config.views.size = "moco_v1", 224
    config.model.arch, config.model.stem, config.model.width = "resnet50", "imagenet", 64
    config.model.head, config.model.dim = "linear", 128
    config.bn.group_size = 32
    config.memory_bank.size, config.memory_bank.momentum = 65536, 0.5
    config.memory_bank.temperature, config.memory_bank.loss = 0.07, "infonce"
    config.optimizer.learning_rate, config.optimizer.momentum, config.optimizer.weight_decay = 0.03, 0.9, 1e-4
    config.optimizer.schedule, config.optimizer.milestones = "step", (120, 160)
    config.train.epochs = 200
    config.eval.every_epochs = 20
    config.eval.bank_split, config.eval.split = "train[:10%]", "validation"
    config.eval.k, config.eval.temperature, config.eval.resize = 200, 0.1, 256
    config.checkpoint.every_epochs = 5
    config.log.every_steps = 100
    return config
