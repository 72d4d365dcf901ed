"""`python -m moco_jax <command>`: the same program as `moco-jax`."""

import sys

from moco_jax.cli import main

sys.exit(main())
