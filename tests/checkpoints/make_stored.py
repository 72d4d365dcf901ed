"""Runs that were stopped half way, as a release leaves them: `python -m tests.checkpoints.make_stored`, once a format.

Writes `stored/format_N_*.tar.gz` of the format of today. What is there is never written again: a later release must
open what an earlier one wrote, not what it would have written.
"""

import contextlib
import signal
import sys
import tarfile
import tempfile
from pathlib import Path

from moco_jax import stopping
from moco_jax.cli import train
from moco_jax.state import FORMAT

STORED = Path(__file__).parent / "stored"
TOTAL, STOP = 24, 10  # steps: four of them an epoch
PAGE = """
from moco_jax.config import page


def get_config():
    config = page("{mechanism}")
    config.batch_size = 32
    config.data.dataset, config.data.split = "digits", "train[:128]"
    config.data.mean, config.data.std = (0.305,), (0.376,)
    config.views.recipe, config.views.size = "digits", 16
    config.model.arch, config.model.stem, config.model.width = "resnet_tiny", "cifar", 4
    config.model.head, config.model.dim, config.model.dtype = "mlp", 8, "float32"
    config.bn.group_size = 8
    config.train.epochs = 6
    config.eval.every_epochs = config.leak.every_epochs = config.consistency.every_epochs = 0
    config.checkpoint.keep = 1
    {more}
    return config
"""
MORE = {
    "moco": "config.queue.size, config.shuffle.block = 64, 16",
    "memory_bank": 'config.memory_bank.loss, config.memory_bank.size = "nce", 32',
    "end_to_end": "config.end_to_end.shared, config.shuffle.block = False, 16",
}


def arguments(mechanism: str, folder: Path) -> list[str]:
    """The command line of the run that was stored, which goes on in folder/run."""
    page = folder / "page.py"
    page.write_text(PAGE.format(mechanism=mechanism, more=MORE[mechanism]))
    return [f"--config={page}", f"--workdir={folder / 'run'}"]


def main() -> int:
    """Every mechanism whose archive is not there yet."""
    STORED.mkdir(exist_ok=True)
    for mechanism in MORE:
        archive = STORED / f"format_{FORMAT}_{mechanism}.tar.gz"
        if archive.exists():
            continue
        with tempfile.TemporaryDirectory() as folder:
            calls = iter(range(1, TOTAL + 1))
            stopping.Signals.asked = lambda _, c=calls: signal.SIGTERM if next(c) == STOP else None
            with contextlib.suppress(SystemExit):
                train.main(arguments(mechanism, Path(folder)))
            with tarfile.open(archive, "w:gz") as tar:
                for name in ("config.json", "log.jsonl", f"checkpoints/{STOP}"):
                    tar.add(Path(folder) / "run" / name, f"run/{name}", filter=_nobodys)
    return 0


def _nobodys(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Whose account wrote it is no part of a format."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    sys.exit(main())
