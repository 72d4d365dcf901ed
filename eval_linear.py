"""Evaluate a pretrained encoder: `python eval_linear.py --config=configs/linear_digits.py --checkpoint=RUN`."""

import sys

from moco_jax.cli.eval_linear import main

if __name__ == "__main__":
    sys.exit(main())
