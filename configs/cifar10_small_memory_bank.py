"""A memory bank on part of CIFAR-10, at half its size: `cifar10_small` with a stored feature of every image.

Command    moco-jax prepare dataset cifar10, once; then
           moco-jax train --config=cifar10_small_memory_bank --workdir=runs/bank
Hardware   two CPU cores, some five minutes
Expected   not run; `python -m benchmarks.mechanisms` compares shorter runs of the three mechanisms.
"""

from moco_jax.config import page


def get_config():
    """The config page."""
    config = page("memory_bank")
    config.batch_size = 128
    config.data.dataset, config.data.split = "cifar10", "train[:10000]"
    config.data.mean, config.data.std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    config.views.recipe, config.views.size = "cifar_demo", 16  # a quarter of the pixels: twice the width for the time
    config.model.arch, config.model.stem, config.model.width = "resnet_tiny", "cifar", 32
    config.model.head, config.model.dim = "mlp", 128
    config.memory_bank.size, config.memory_bank.momentum = 2048, 0.5
    config.memory_bank.temperature, config.memory_bank.loss = 0.1, "infonce"
    config.optimizer.learning_rate, config.optimizer.weight_decay = 0.06, 5e-4
    config.optimizer.schedule = "cosine"
    config.train.epochs = 14
    config.eval.bank_split, config.eval.split = "train[:10000]", "train[40000:42000]"  # test is for nobody's tuning
    # The notebook's judge: the head's feature, and 200 neighbours of 50,000 as 40 of 10,000.
    config.eval.feature, config.eval.k, config.eval.temperature = "head", 40, 0.1
    config.eval.every_epochs = 2
    config.log.every_steps = 20
    return config
