"""`moco-jax transfer`: flags, then one call."""

from collections.abc import Sequence

from moco_jax import protocols
from moco_jax.cli import flags

USAGE = (
    "usage: moco-jax transfer [--config=PAGE] [--config.KEY=VALUE ...] [--encoders=RUN|FILE,...] [--workdir=DIR]\n\n"
    "One table: pixels, the untrained network, encoders and supervised training, by kNN, linear, few labels and "
    "fine-tuning.\n\n"
    "  moco-jax transfer --encoders=runs/mine --config.data.dataset=labelled.csv --config.labels=\"('5', '10%')\""
)
NAMED = {
    "encoders": (
        "",
        "folders of runs and files of weights, separated by commas; the first is compared with each other row",
    ),
    "workdir": (
        None,
        "folder for the table; by the first encoder, RUN/transfer, or FILE without its ending and _transfer",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Make the table as the flags say; returns the exit status."""
    return flags.run(_transfer, argv)


def _transfer(argv: Sequence[str]) -> int:
    page, named = flags.parse(argv, page="transfer", named=NAMED, usage=USAGE)
    settings = protocols.read(page, protocols.Transfer)
    flags.prepare_environment()

    from moco_jax.evaluation import loading, transfer

    encoders = [path for path in named["encoders"].split(",") if path]
    workdir = named["workdir"] or loading.workdir_for((encoders or ["."])[0], "transfer")
    return flags.evaluated(lambda: transfer.run(settings, encoders, workdir, say=flags.say))
