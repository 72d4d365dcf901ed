"""Weights of other programs, whatever kind of file or folder they come in: one function."""

import hashlib
import re
from pathlib import Path

from moco_jax import places
from moco_jax.checkpoints import folders, pytorch, recognise, safetensors_file, weights
from moco_jax.checkpoints.huggingface_folders import read_huggingface
from moco_jax.checkpoints.recognise import Found
from moco_jax.checkpoints.timm_folders import read_timm
from moco_jax.checkpoints.weights import Imported
from moco_jax.config import ConfigError

READERS = {"timm": read_timm, "huggingface": read_huggingface}


def is_foreign(path: Path) -> bool:
    """Whether a path is a file of weights, or a folder of timm or transformers, as against a run's folder."""
    if places.is_remote(path):
        return False  # files are read where they are mapped into memory
    if path.is_file():
        return True
    is_run = (path / "checkpoints").is_dir()
    return not is_run and ((path / folders.WEIGHTS).is_file() or _describes_a_model(path / folders.CONFIG))


def _describes_a_model(config: Path) -> bool:
    """Whether it is a config.json of those libraries, not a run's, which has the same name."""
    try:
        return bool({"model_type", "architecture"} & folders.read_json(config).keys())
    except ConfigError:
        return False


def unchecked(path: Path) -> bool:
    """Whether a file's format has no checksum, so that damage inside it goes unnoticed."""
    return path.is_file() and not (pytorch.is_file(path) and pytorch.has_checksums(path))


def missing(path: Path) -> ConfigError:
    """The error for weights where there is nothing."""
    return ConfigError(
        f"there is no {path}: give a run's folder, a file of weights, or a folder of timm or transformers"
    )


def neither(path: Path) -> ConfigError:
    """The error for a folder that is none of those with weights."""
    return ConfigError(
        f"{path} is no run's folder, no file of weights, and no folder with {folders.CONFIG} and {folders.WEIGHTS}"
    )


def read(path: Path, *, sha256: str | None = None) -> Found:
    """What a file or folder of weights holds; ConfigError where there is none, or it is damaged, unsafe or unknown.

    `sha256`, in hexadecimal digits, is of the file, and compared first: the one check of formats without checksums. Of
    safetensors the very bytes are compared that are then read.
    """
    if not path.exists():
        raise missing(path)
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", sha256):
        raise ConfigError(f"a SHA-256 has 64 hexadecimal digits, and {sha256!r} is none")
    file = path / folders.WEIGHTS if path.is_dir() else path
    try:
        whole_at_once = file.is_file() and (path.is_dir() or safetensors_file.is_file(file))
        data, found = file.read_bytes() if whole_at_once else None, None
        if data is not None:
            found = hashlib.sha256(data).hexdigest()
        elif sha256 is not None:
            found = pytorch.digests(file)[1]
        if sha256 is not None and found != sha256.lower():
            raise ConfigError(f"{file} has SHA-256 {found}, not {sha256}: it is damaged, or another file")
        if path.is_dir():
            return _of_folder(READERS[folders.library(path)](path, data), path, found or "")
        if not path.is_file():
            raise ConfigError(f"{path} is no file: give a file of weights")
        whole = recognise.from_file(path) if data is None else _of_safetensors(path, data, found or "")
        if sha256 is not None and whole.sha256 != sha256.lower():
            raise ConfigError(f"{path} was replaced by another file while it was read")
        return whole
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or error})") from None


def _of_safetensors(path: Path, data: bytes, sha256: str) -> Found:
    tensors, _ = safetensors_file.read(path, data)
    try:
        return recognise.from_tensors(tensors, "a ResNet in torchvision's names, safetensors", sha256)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def _of_folder(imported: Imported, path: Path, sha256: str) -> Found:
    """The encoder of a folder, its numbers checked as any file's."""
    try:
        encoder, classifier = weights.encoder(imported.backbone, {}), imported.classifier
        if classifier is not None:
            classifier = weights.classifier(classifier.weight, classifier.bias, encoder, classifier.names)
    except ConfigError as error:
        raise ConfigError(f"{path / folders.WEIGHTS}: {error}") from None
    return Found(
        layout=imported.layout,
        online=encoder,
        target=None,
        training=None,
        classifier=classifier,
        pixels=imported.pixels,
        published=None,
        ours=None,
        dropped=(),
        sha256=sha256,
        origin=imported.origin,
    )
