"""Weighted nearest neighbours of a frozen encoder, for any run whose data has labels.

k of 10, 20, 100 and 200 as in the tables of DINO and mmselfsup (which take T 0.07), T 0.1 as in MoCo's notebook.

Command    moco-jax knn --config=knn --checkpoint=runs/digits
"""

from moco_jax import protocols


def get_config():
    """The config page."""
    return protocols.page("knn")
