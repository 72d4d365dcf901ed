"""`moco-jax features RUN --output=FILE`: flags, then one call."""

from collections.abc import Sequence
from pathlib import Path

from moco_jax.cli import flags
from moco_jax.config import ConfigError, unknown

USAGE = (
    "usage: moco-jax features RUN --output=FILE [--images=IMAGES] [--split=SPLIT] [--data_dir=DIR] [--feature=NAME]\n"
    "       [--format=FORMAT] [--batch_size=N]\n\n"
    "Features of images by an encoder: a file of features (N, D), names, ids, and labels, groups and class_names\n"
    "where there are any.\n\n"
    "  moco-jax features runs/digits --split=test --output=digits.npz"
)
PLACES = {"RUN": "folder of a run, which may still be going, or a file of weights"}
NAMED = {
    "output": (None, "the file to write; .npz or .parquet"),
    "images": (None, "a data set, folder or manifest; the run's own training images where not given (a file has none)"),
    "split": (None, "which of them; those trained on, or train, where not given"),
    "data_dir": (None, "TFDS data directory of the images; the run's where not given"),
    "feature": ("backbone", "backbone (pooled) or head (what the loss compares)"),
    "format": (None, "npz, or parquet (pip install moco_jax[parquet]); what --output ends in where not given"),
    "batch_size": (256, "images encoded at once"),
}
FORMATS = ("npz", "parquet")


def main(argv: Sequence[str] | None = None) -> int:
    """Write features as the flags say; returns the exit status."""
    return flags.run(_features, argv)


def _features(argv: Sequence[str]) -> int:
    (run,), named = flags.parse_without_page(argv, places=PLACES, named=NAMED, usage=USAGE)
    output, form, batch_size = named["output"], named["format"], named["batch_size"]
    if not output:
        raise ConfigError(f"--output=FILE is missing: {USAGE.splitlines()[0]}")
    if form is not None and form not in FORMATS:
        raise unknown("--format", form, FORMATS)
    if form is not None and Path(output).suffix != f".{form}":
        raise ConfigError(f"--format={form} writes a file that ends in .{form}, not --output={output}")
    if not batch_size:
        raise ConfigError(f"--batch_size must be a whole number from 1 on, not {batch_size}")
    flags.prepare_environment()

    from moco_jax.evaluation import export

    chosen = {name: named[name] for name in ("images", "split", "data_dir", "feature")}
    arrays = export.export(run, output, batch_size=batch_size, say=print, **chosen)
    print(f"{output}: " + ", ".join(f"{name} {values.shape}" for name, values in arrays.items()))
    return 0
