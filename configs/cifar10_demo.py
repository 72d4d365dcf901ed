"""MoCo on CIFAR-10 as in facebookresearch/moco's notebook: ResNet-18, one GPU, 200 epochs, kNN after each.

Command    moco-jax prepare dataset cifar10, once; then moco-jax train --config=cifar10_demo --workdir=runs/cifar10
Hardware   one GPU; on its V100 the notebook takes 80.9 minutes with the kNN. Not run here.
Published  kNN top-1 on test, by the notebook's authors:

                                                     200 epochs   400 epochs   800 epochs
             as it is                                      82.6         86.3         88.7
             with --config.moco.symmetric=true             85.3         88.5         89.7

           (--config.train.epochs=400 or 800.) The loss rises at first: 6.96, at epoch 3 7.29, at 20 4.34, at 200 2.27;
           kNN: 32.0, 34.7, 61.4, 82.6. `moco-jax compare RUN tests/parity/data/cifar10_moco_asym200.csv` (in a clone)
           holds a run beside that log, also while it is going.
Not equal  Batch-norm groups are contiguous where the notebook's are interleaved, which no image notices. Epochs count
           from 0 in the schedule where its count from 1, so that its last epoch trains at a rate of 0.
"""

from moco_jax.config import page


def get_config():
    """The config page."""
    config = page("moco")
    config.batch_size = 512
    config.data.dataset, config.data.split = "cifar10", "train"
    config.data.mean, config.data.std = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)
    config.data.path = "resident"  # 154 MB
    config.views.recipe, config.views.size = "cifar_demo", 32
    config.model.arch, config.model.stem, config.model.width = "resnet18", "cifar", 64
    config.model.head, config.model.dim = "linear", 128
    config.bn.group_size = 64  # bn_splits = 8
    config.shuffle.block = 512  # the whole batch
    config.moco.momentum, config.moco.temperature, config.moco.symmetric = 0.99, 0.1, False
    config.queue.size = 4096
    config.optimizer.learning_rate, config.optimizer.momentum, config.optimizer.weight_decay = 0.06, 0.9, 5e-4
    config.optimizer.schedule = "cosine"
    config.train.epochs = 200
    config.eval.every_epochs = 1
    config.eval.bank_split, config.eval.split = "train", "test"
    config.eval.k, config.eval.temperature, config.eval.feature = 200, 0.1, "head"
    config.log.every_steps = 97  # an epoch
    return config
