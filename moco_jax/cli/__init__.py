"""One program: `moco-jax <command>`. Flags are read here, before JAX is imported; the work is elsewhere."""

import sys
from collections.abc import Sequence

from moco_jax import __version__
from moco_jax.config import unknown

COMMANDS = {
    "inspect": "what your images are, what training would do, and a config page for them",
    "train": "pretrain an encoder (default: handwritten digits into runs/digits)",
    "report": "pictures of runs and whether they learned: PNG and one HTML page, also while a run is going",
    "features": "features of images by an encoder as .npz or .parquet, with names, labels and groups",
    "knn": "accuracy by nearest neighbours: several k, backbone and head features",
    "eval-linear": "linear accuracy of a frozen encoder by the published protocol",
    "finetune": "the whole network trained on labels: from an encoder, or from scratch for comparison",
    "transfer": "was it worth it? encoders beside pixels, no training and supervised training, in one table",
    "convert": "weights to and from PyTorch, timm, Hugging Face and Detectron2, compared in features",
    "prepare": "once: a data set of TFDS (dataset), TFRecord as array_record (convert), images made smaller (shrink)",
    "compare": "a run's learning rate, loss and kNN beside a reference's, also while the run is going",
}
STATUS = "exit status: 0 done; 1 an error, in one line; 2 no such command; 130 Ctrl-C, 143 SIGTERM, after a checkpoint"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status: 0, 1 for an error of the user's, 2 for an unknown command.

    `compare` is like diff: 0 within its tolerances, 1 outside, 2 for an error of the user's.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    from moco_jax.cli import (
        compare,
        convert,
        eval_linear,
        features,
        finetune,
        inspect,
        knn,
        prepare,
        report,
        train,
        transfer,
    )

    mains = {
        "inspect": inspect.main,
        "train": train.main,
        "report": report.main,
        "features": features.main,
        "knn": knn.main,
        "eval-linear": eval_linear.main,
        "finetune": finetune.main,
        "transfer": transfer.main,
        "convert": convert.main,
        "prepare": prepare.main,
        "compare": compare.main,
    }
    if argv and argv[0] in ("--version", "version"):
        print(f"moco_jax {__version__}")
        return 0
    if not argv or argv[0] not in mains:
        if argv and argv[0] not in ("--help", "-h", "help"):
            print(f"error: {unknown('command', argv[0], mains)}; moco-jax --help explains them", file=sys.stderr)
            return 2
        lines = ["usage: moco-jax COMMAND [flags]   (moco-jax COMMAND --help)", ""]
        lines += [f"  {name:<14}{text}" for name, text in COMMANDS.items()]
        print("\n".join([*lines, "", STATUS]))
        return 0
    return mains[argv[0]](argv[1:])
