"""The folder of a run: whose it is, what it holds, and that nobody else is at work in it."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from moco_jax import checks, parallel, places
from moco_jax.assembly import Parts
from moco_jax.checkpoints.store import Store, exclusive, read_json, write_json
from moco_jax.config import ConfigError, read_stored
from moco_jax.data import opening
from moco_jax.logs import BAD_FILES, says


@contextlib.contextmanager
def held(workdir: Path, about: dict[str, Any], parts: Parts) -> Iterator[None]:
    """The run's folder, held by this run, with config.json; raises ConfigError where it cannot be written.

    Or where it holds another run by now: it was looked at before, and images may have been read for minutes since.

    A new folder goes again where the run ends in a ConfigError before its first checkpoint, such as an image unlike
    the others that only turns up in training: what the error asks to change would make it another run. One that was
    there, and empty, stays and is empty again. A log that names bad files stays, as what they ask for may change.
    """
    if not parallel.is_first_process():
        yield
        return
    with contextlib.ExitStack() as held:
        try:
            made, remote = not workdir.exists(), places.is_remote(workdir)
            if not remote:
                workdir.mkdir(parents=True, exist_ok=True)
            empty = not places.listed(workdir)
            if not remote:
                held.enter_context(exclusive(workdir))
            check(parts, workdir)
            write_json(workdir / "config.json", about)
        except OSError as error:
            reason = "it is a file" if workdir.is_file() else error.strerror or error
            raise ConfigError(f"cannot write to {workdir}: {reason}; give another --workdir") from None
        try:
            yield
        except ConfigError:
            if empty and not any((workdir / "checkpoints").glob("[0-9]*")) and not _tells(workdir):
                for path in places.listed(workdir):
                    places.remove(path)
                if made and not remote:
                    workdir.rmdir()
            raise


def check(parts: Parts, workdir: str | Path) -> int:
    """The newest checkpoint's step, 0 for none; raises ConfigError where the folder holds another run than `parts`."""
    workdir = places.at(workdir)
    if places.is_remote(workdir) and parts.config.log.tensorboard:
        raise ConfigError(
            f"log.tensorboard=True writes to a disk, and {workdir} is none: set log.tensorboard=False; the numbers "
            f"are in {places.log_of(workdir)} as well"
        )
    if any(f.name == "checkpoints" and (f.parent / "config.json").exists() for f in (workdir, workdir.parent)):
        raise ConfigError(f"--workdir={workdir} lies among the checkpoints of a run; give the run's folder, or another")
    data, labelled = parts.config.data, parts.config.eval
    own = data.folder and Path(data.folder).expanduser().resolve()
    judged = labelled.data and opening.folder_of(labelled.data, labelled.data_dir or data.data_dir)
    for key, folder in (("data.folder", own), ("eval.data", judged)):
        if folder and not places.is_remote(workdir) and workdir.resolve().is_relative_to(folder):
            raise ConfigError(
                f"--workdir={workdir} lies in {key} {folder}: its pictures would be taken for images; give a --workdir "
                "outside of it"
            )
    about, step, hint = stored(workdir)
    if about is None:
        return 0
    try:
        checks.check_same_run(parts.config, read_stored(about["config"]), f"{workdir}{hint}")
        checks.check_same_records(parts.records, about.get("records"), f"{workdir}{hint}")
        objects = about["objects"]
    except KeyError as error:
        raise ConfigError(
            f"{workdir}/config.json is not that of a run, which would hold {error}: use another --workdir, and leave "
            "what is there to whom it belongs"
        ) from None
    for name, label in objects.items():
        if parts.objects.get(name) != label:
            raise ConfigError(
                f"{workdir} holds a run with {name} {label or 'of the config'!r}, this one has "
                f"{parts.objects.get(name) or 'of the config'!r}: give the same object as {name}= to moco_jax.train"
            )
    return step or 0


def _tells(workdir: Path) -> bool:
    """Whether the log names bad files: where a run stopped at too many, it is the list of them."""
    try:
        return f'"event": "{BAD_FILES}"' in places.read_log(workdir)
    except FileNotFoundError:
        return False


def stored(workdir: Path) -> tuple[dict[str, Any] | None, int | None, str]:
    """What a folder says of its run, at which checkpoint, and what to do where it has none; None: it holds no run."""
    step, about = None, None
    if places.listed(workdir / "checkpoints"):
        with Store(workdir / "checkpoints", read_only=True) as store:
            step, about = store.described()
    if about is not None:
        return about, step, ""
    # stopped before its first checkpoint, or no run at all
    return read_json(workdir / "config.json"), None, f" (it has no checkpoint yet: delete {workdir} to begin anew)"


def lacks(workdir: Path, event: str, step: int) -> bool:
    """Whether the log lacks an event of a step; one that is not there (of a run that was converted) lacks nothing."""
    return parallel.first_says(says(workdir, event, step) is False)
