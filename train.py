"""Pretrain an encoder: `python train.py --config=configs/digits.py --config.a.b=value --workdir=DIR`."""

import sys

from moco_jax.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
