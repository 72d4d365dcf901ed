"""Weights of other programs, whatever kind of file they come in: one function."""

from pathlib import Path

from moco_jax.checkpoints import pytorch, recognise
from moco_jax.checkpoints.recognise import Found
from moco_jax.config import ConfigError


def is_foreign(path: Path) -> bool:
    """Whether a path is a file of weights, as against a run's folder."""
    return path.is_file()


def read(path: Path, *, sha256: str | None = None) -> Found:
    """What a file of weights holds; ConfigError where there is none, or it is damaged, unsafe or unknown.

    `sha256`, in hexadecimal digits, is compared first: the one check of formats that carry no checksum.
    """
    if not path.exists():
        raise ConfigError(f"there is no {path}")
    if sha256 is not None:
        _, found = pytorch.digests(path)
        if found != sha256.lower():
            raise ConfigError(f"{path} has SHA-256 {found}, not {sha256}: it is damaged, or another file")
    return recognise.from_file(path)
