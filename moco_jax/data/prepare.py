"""TFDS data sets downloaded and written as array_record, by TFDS in a process of its own.

TensorFlow, which most data sets need to be prepared and none to be read, so never enters ours.
"""

import difflib
import importlib.util
import os
import re
import subprocess
import sys
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import constants, read_only_builder

from moco_jax.config import ConfigError
from moco_jax.data import digits

EXTRA = 'pip install "moco_jax[prepare]"'
# What the other process runs, with a name and a folder: an error ends in one line, after TFDS's own words.
SCRIPT = """
import sys
import tensorflow_datasets as tfds
name, folder = sys.argv[1:]
try:
    tfds.builder(name, data_dir=folder, file_format="array_record").download_and_prepare()
except Exception as error:
    sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
"""
TAIL = 4096  # bytes of the other process's output that are kept for its last words
LONGEST = 300  # characters of them that are told


def folder_of(data_dir: str | None) -> str:
    """The TFDS folder that `data_dir` stands for; None is TFDS's own default."""
    return os.path.expanduser(data_dir or constants.DATA_DIR)


def formats(name: str, folder: str) -> tuple[str, list[str]]:
    """Where the data set lies and in which file formats; no format where it is not there."""
    try:
        builder = read_only_builder.builder_from_files(name, data_dir=folder)
    except ValueError:  # not found there, or no name at all
        return "", []
    return str(builder.data_path), formats_of(builder)


def formats_of(builder: Any) -> list[str]:
    """File formats of a data set that is there; TFDS takes an old one, which does not say, for TFRecord."""
    return sorted(form.value for form in builder.info.available_file_formats())


def other_format(name: str, folder: str, path: str, there: list[str]) -> ConfigError:
    """The error for a data set at `path` that is not there as array_record, with the way to get it."""
    how = f"prepare it into another folder: moco-jax prepare dataset {name} --data_dir=FOLDER"
    if "tfrecord" in there:
        how = f"convert it once: moco-jax prepare convert {path} --data_dir=FOLDER"
    return ConfigError(
        f"data set {name!r} is prepared in {folder} as {', '.join(there)}, and array_record is needed; {how}"
    )


def dataset(name: str, data_dir: str | None) -> bool:
    """Prepare the data set `name` in a TFDS folder (None: TFDS's own default); False if it was there already.

    TFDS's progress goes to stderr. Raises ConfigError for a name that TFDS does not know, one that is there in another
    file format, a folder that cannot be written, a lack of TensorFlow, and whatever TFDS stops with, by its last words.
    """
    folder = folder_of(data_dir)
    base = name.split("/")[0].split(":")[0]
    known = [*tfds.list_builders(with_community_datasets=False), "digits"]
    if base not in known:
        near = difflib.get_close_matches(base, known, 1, 0.5)
        hint = f"did you mean {near[0]!r}?" if near else "its catalogue: https://www.tensorflow.org/datasets"
        raise ConfigError(f"TFDS has no data set {name!r}; {hint}")
    path, there = formats(name, folder)
    if "array_record" in there:
        return False
    if there:
        raise other_format(name, folder, path, there)
    if base == "digits":
        digits.prepare(folder)
        return True
    if importlib.util.find_spec("tensorflow") is None:
        raise ConfigError(f"preparing {name!r} needs TensorFlow (reading it does not): {EXTRA}")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"data_dir {folder!r} cannot be written ({error.strerror or error}); name another") from error
    in_a_process_of_its_own(name, folder)
    return True


def in_a_process_of_its_own(name: str, folder: str) -> None:
    """TFDS's own builder, run by SCRIPT; its output is passed on as it comes. Raises ConfigError if it fails."""
    command = [sys.executable, "-u", "-c", SCRIPT, name, folder]
    tail = b""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        while piece := os.read(process.stdout.fileno(), TAIL):  # at once: a progress bar ends no line
            sys.stderr.write(piece.decode(errors="replace"))
            sys.stderr.flush()
            tail = (tail + piece)[-TAIL:]
    if process.returncode == 0:
        return
    lines = [line.strip() for line in re.split(r"[\r\n]", tail.decode(errors="replace")) if line.strip()]
    words = lines[-1][:LONGEST] if lines and process.returncode > 0 else f"ended by signal {-process.returncode}"
    raise ConfigError(f"TFDS could not prepare {name!r} in {folder}: {words}")
