"""`eval_linear.py` and `moco-jax eval-linear`: flags, then one call."""

from collections.abc import Sequence

from moco_jax import protocols
from moco_jax.cli import flags

USAGE = (
    "usage: eval_linear.py (or moco-jax eval-linear) [--config=PAGE] "
    "[--config.KEY=VALUE ...] [--checkpoint=RUN|FILE] [--workdir=DIR]\n\n"
    "Linear accuracy of a frozen encoder by the published protocol; `moco-jax transfer` sets it beside others.\n\n"
    "  moco-jax eval-linear --checkpoint=runs/digits --config.learning_rates='(30.0, 10.0, 3.0)' --config.holdout=0.1"
)
NAMED = {
    "checkpoint": ("runs/digits", "folder of the run, or file of weights, to evaluate"),
    "workdir": (None, "folder for the result; RUN/linear, or FILE without its ending and _linear, where not given"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the flags say; returns the exit status."""
    return flags.run(_evaluate, argv)


def _evaluate(argv: Sequence[str]) -> int:
    page, named = flags.parse(argv, page="linear_digits", named=NAMED, usage=USAGE)
    settings = protocols.read(page, protocols.Linear)
    flags.prepare_environment()

    from moco_jax.evaluation import loading, probe

    run = named["checkpoint"]
    workdir = named["workdir"] or loading.workdir_for(run, "linear")
    return flags.evaluated(lambda: probe.run(settings, run, workdir))
