"""MoCo v2 on scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels that need no download.

Command    python train.py --config=configs/digits.py --workdir=runs/digits, then python eval_linear.py
Hardware   two CPU cores, about a minute
Expected   logistic regression with 10 labels per class 88.7 % (five seeds: 87.3 to 90.0), pixels 82.8 %, untrained
           encoder 76.9 %; kNN on held-out train images about 95 %. Chosen on images held out of train.
"""

from moco_jax.config import page


def get_config():
    """The config page."""
    config = page("moco")
    config.batch_size = 128
    config.data.dataset = "digits"
    config.data.split = "train[:1200]"  # the rest of train is for monitoring; test is for the final table alone
    config.data.mean, config.data.std = (0.305,), (0.376,)
    config.views.recipe, config.views.size = "digits", 16
    config.model.arch, config.model.stem, config.model.width = "resnet_tiny", "cifar", 32
    config.model.head, config.model.dim = "mlp", 128
    config.moco.momentum, config.moco.temperature = 0.99, 0.1
    config.queue.size = 512
    config.optimizer.learning_rate, config.optimizer.schedule = 0.06, "cosine"
    config.train.epochs = 30
    config.eval.bank_split, config.eval.split = "train[:1200]", "train[1200:]"
    config.eval.k, config.eval.resize, config.eval.every_epochs = 20, 16, 10
    return config
