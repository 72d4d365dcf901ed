"""End-to-end contrast on 2,048 images of CIFAR-10, at half their size: the batch as dictionary.

Command    moco-jax prepare dataset cifar10, once; then
           moco-jax train --config=cifar10_small_end_to_end --workdir=runs/e2e
Hardware   one CPU core, two to three minutes
Expected   kNN 43.6 ± 0.9 % (three seeds by `python -m benchmarks.mechanisms`; this command with seed 1: 42.0); an
           untrained network 29.9 ± 0.7 %. docs/mechanisms.md compares batches of 64 to 1,024, and the other mechanisms.
"""

from moco_jax.config import page


def get_config():
    """The config page."""
    config = page("end_to_end")
    config.batch_size = 256
    config.data.dataset, config.data.split = "cifar10", "train[:2048]"  # few images, seen often
    config.data.mean, config.data.std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    config.data.workers = 1
    config.views.recipe, config.views.size = "cifar_demo", 16  # a quarter of the pixels
    config.model.arch, config.model.stem, config.model.width = "resnet_tiny", "cifar", 16
    config.model.head, config.model.dim = "linear", 128
    config.bn.group_size = 8
    config.end_to_end.temperature, config.end_to_end.symmetric, config.end_to_end.shared = 0.1, False, True
    config.optimizer.learning_rate = 0.24
    config.optimizer.weight_decay, config.optimizer.schedule = 5e-4, "cosine"
    config.train.epochs = 24
    config.eval.bank_split, config.eval.split = "train[:10000]", "train[40000:42000]"  # test is for nobody's tuning
    config.eval.feature, config.eval.k, config.eval.temperature = "backbone", 40, 0.1
    config.eval.every_epochs = 6
    config.leak.every_epochs = 0
    config.log.every_steps = 20
    return config
