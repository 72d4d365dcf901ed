"""A memory bank on 2,048 images of CIFAR-10, at half their size: a stored feature of every image.

Command    moco-jax prepare dataset cifar10, once; then
           moco-jax train --config=cifar10_small_memory_bank --workdir=runs/bank
Hardware   one CPU core, two to three minutes
Expected   kNN 35.4 ± 0.7 % (three seeds by `python -m benchmarks.mechanisms`; this command with seed 1: 34.1); an
           untrained network 29.9 ± 0.7 %. The loss lies above chance in the first epochs, which fill the bank.
           docs/mechanisms.md compares sizes, losses, and the other mechanisms.
"""

from moco_jax.config import page


def get_config():
    """The config page."""
    config = page("memory_bank")
    config.batch_size = 64
    config.data.dataset, config.data.split = "cifar10", "train[:2048]"  # few images, seen often
    config.data.mean, config.data.std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    config.data.workers = 1
    config.views.recipe, config.views.size = "cifar_demo", 16  # a quarter of the pixels
    config.model.arch, config.model.stem, config.model.width = "resnet_tiny", "cifar", 16
    config.model.head, config.model.dim = "linear", 128
    config.bn.group_size = 8
    config.memory_bank.size, config.memory_bank.momentum = 256, 0.5
    config.memory_bank.temperature, config.memory_bank.loss = 0.2, "infonce"
    config.optimizer.learning_rate = 0.06  # 0.24 for 256 images
    config.optimizer.weight_decay, config.optimizer.schedule = 5e-4, "cosine"
    config.train.epochs = 24
    config.eval.bank_split, config.eval.split = "train[:10000]", "train[40000:42000]"  # test is for nobody's tuning
    config.eval.feature, config.eval.k, config.eval.temperature = "backbone", 40, 0.1
    config.eval.every_epochs = 6
    config.log.every_steps = 20
    return config
