"""Linear probe of a digits encoder beside raw pixels and the untrained encoder, with few labels and with all.

Command    python eval_linear.py --config=configs/linear_digits.py --checkpoint=runs/digits
"""

from moco_jax.config import probe_page


def get_config():
    """The config page."""
    config = probe_page()
    config.train_split, config.test_split = "train", "test"
    config.labels_per_class, config.draws = 10, 20
    return config
