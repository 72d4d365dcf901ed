"""`train.py` and `moco-jax train`: flags, then one call."""

from collections.abc import Sequence

from moco_jax import config
from moco_jax.cli import flags

USAGE = (
    "usage: train.py (or moco-jax train) [--config=PAGE] [--config.KEY=VALUE ...] [--workdir=DIR] [--dry_run]\n\n"
    "Pretrain an encoder. The keys below are those of --config, if one is given.\n\n"
    "  moco-jax train --config=photos --config.data.folder=photos --workdir=runs/photos"
)
NAMED = {
    "workdir": ("runs/digits", "folder of the run, or gs://BUCKET/FOLDER; the same command continues it"),
    "dry_run": (False, "say what the run would take (memory, FLOPs, steps, hours), and write nothing"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Pretrain as the flags say; returns the exit status."""
    return flags.run(_train, argv)


def _train(argv: Sequence[str]) -> int:
    page, named = flags.parse(argv, page="digits", named=NAMED, usage=USAGE)
    run_config = config.read(page)
    flags.prepare_environment()

    from moco_jax import dry_run, parallel, places, pretrain

    parallel.start(run_config.train.heartbeat_seconds)
    if named["dry_run"]:
        dry_run.report(run_config, named["workdir"], say=_say if parallel.is_first_process() else lambda _: None)
        return 0
    if parallel.is_first_process():
        print(f"devices: {parallel.describe()}", flush=True)
    result = pretrain.train(run_config, named["workdir"])
    if parallel.is_first_process():
        state = "was complete already" if result.was_complete else f"done in {result.seconds:.0f} s"
        log = places.log_of(result.workdir)  # a run that was converted after its last step has none
        print(f"{state}: checkpoint {result.workdir}/checkpoints/{result.checkpoint}" + f", log {log}" * log.exists())
    return 0


def _say(line: str) -> None:
    print(line, flush=True)
