"""`moco-jax knn`: flags, then one call."""

from collections.abc import Sequence

from moco_jax import protocols
from moco_jax.cli import flags

USAGE = (
    "usage: moco-jax knn [--config=PAGE] [--config.KEY=VALUE ...] [--checkpoint=RUN|FILE] [--workdir=DIR]\n\n"
    "Accuracy of a frozen encoder by the votes of nearest neighbours: for several k, on backbone and head features.\n\n"
    "  moco-jax knn --checkpoint=runs/digits --config.temperature=0.07 --config.k='(20, 200)'"
)
NAMED = {
    "checkpoint": ("runs/digits", "folder of the run, or file of weights, to evaluate"),
    "workdir": (None, "folder for the result; RUN/knn, or FILE without its ending and _knn, where not given"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Evaluate as the flags say; returns the exit status."""
    return flags.run(_knn, argv)


def _knn(argv: Sequence[str]) -> int:
    page, named = flags.parse(argv, page="knn", named=NAMED, usage=USAGE)
    settings = protocols.read(page, protocols.Knn)
    flags.prepare_environment()

    from moco_jax.evaluation import loading, neighbours

    run = named["checkpoint"]
    workdir = named["workdir"] or loading.workdir_for(run, "knn")
    return flags.evaluated(lambda: neighbours.run(settings, run, workdir, say=flags.say))
