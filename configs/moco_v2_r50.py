"""MoCo v2, ResNet-50, ImageNet, 200 epochs (arXiv:2003.04297): v1 with the paper's four changes.

`--mlp --moco-t 0.2 --aug-plus --cos` in facebookresearch/moco.

Command    python train.py --config=configs/moco_v2_r50.py --config.data.data_dir=DIR --workdir=runs/moco_v2
Published  67.5 % linear top-1 (five runs of the released code: 67.5 +- 0.1), 8 V100, 53 hours, 5.0 GB each. Not
           rerun here.
"""

from moco_jax.pages import load


def get_config():
    """The config page."""
    config = load("moco_v1_r50")
    config.model.head = "mlp"
    config.moco.temperature = 0.2
    config.views.recipe = "moco_v2"
    config.optimizer.schedule, config.optimizer.milestones = "cosine", ()
    return config
