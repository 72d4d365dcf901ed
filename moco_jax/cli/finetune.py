"""`moco-jax finetune`: flags, then one call."""

from collections.abc import Sequence

from moco_jax import protocols
from moco_jax.cli import flags

USAGE = (
    "usage: moco-jax finetune [--config=PAGE] [--config.KEY=VALUE ...] [--checkpoint=RUN|FILE] [--workdir=DIR]\n\n"
    "The whole network trained on labels: from a run's encoder, or from scratch for comparison.\n\n"
    "  moco-jax finetune --checkpoint=runs/digits --config.labels=10 --config.draws=10\n"
    "  moco-jax finetune --checkpoint=runs/digits --config.start=scratch --workdir=runs/digits/scratch"
)
NAMED = {
    "checkpoint": ("runs/digits", "folder of the run, or file of weights, whose encoder or network is trained"),
    "workdir": (None, "folder for the result; RUN/finetune, or FILE without its ending and _finetune, where not given"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Fine-tune as the flags say; returns the exit status."""
    return flags.run(_finetune, argv)


def _finetune(argv: Sequence[str]) -> int:
    page, named = flags.parse(argv, page="finetune", named=NAMED, usage=USAGE)
    settings = protocols.read(page, protocols.Finetune)
    flags.prepare_environment()

    from moco_jax.evaluation import finetune, loading

    run = named["checkpoint"]
    workdir = named["workdir"] or loading.workdir_for(run, "finetune")
    return flags.evaluated(lambda: finetune.run(settings, run, workdir))
