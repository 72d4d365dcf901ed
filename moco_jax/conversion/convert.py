"""A conversion from start to end: read, check, write beside, compare, and only then give it its name."""

import contextlib
import functools
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from moco_jax.checkpoints import huggingface_folders, reading, timm_folders
from moco_jax.checkpoints.messages import one_line
from moco_jax.checkpoints.weights import Portable
from moco_jax.config import Config, ConfigError, unknown
from moco_jax.conversion import probe, source, table, written

FORMATS = {  # what --format takes, and what it makes
    "orbax": "a run's folder, from which train continues",
    "pth.tar": "the released MoCo code's checkpoint, whole",
    "pth": "the backbone as a PyTorch state_dict in torchvision's names",
    "timm": "a folder that timm opens",
    "huggingface": "a folder that transformers opens",
    "detectron2": "a .pkl that Detectron2 starts from",
}
WHOLE = ("orbax", "pth.tar")  # formats of a whole state; the others hold a backbone
OFF = "the processor in this folder cuts every image one pixel off; use the timm folder for the same pixels"
FROM_PORTABLE: dict[str, Callable[[Portable, Path], written.Told]] = {
    "pth": written.pth,
    "timm": functools.partial(written.folder_of, timm_folders.write_timm),
    "huggingface": functools.partial(written.folder_of, huggingface_folders.write_huggingface),
    "detectron2": written.detectron,
}


def convert(
    src: str | Path,
    dst: str | Path,
    form: str,
    *,
    which: str = "online",
    config: Config | None = None,
    classifier: str | Path | None = None,
    sha256: str | None = None,
    licence: str | None = None,
    flags: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Write the weights of `src` to `dst` in a format of FORMATS, and say what was mapped and how far it agrees.

    `which` is the encoder that leaves; `config` the run that continues another program's checkpoint (orbax);
    `classifier` a folder of `eval-linear`, of that very encoder; `sha256` what the source must have;
    `flags` are those that made `config`, to say how training goes on. Raises ConfigError
    for what cannot be read, written or held by the format, and where features do not agree: then `dst` is not there.
    """
    _check_flags(form, which, config, classifier, licence)
    src, dst = Path(src).expanduser(), Path(dst).expanduser()
    _check_destination(dst)
    what = source.open_source(src, sha256=sha256)
    say(f"{src}: {what.layout}")
    if sha256 is None and reading.unchecked(src):
        say("its format has no checksum: damage inside would not show; --sha256=HEX compares it with what it should be")
    if what.found is not None and what.found.published is not None:
        say(f"it is {what.found.published} by the MD5 that its authors give")
    if what.found is not None and what.found.assumed:
        say("nothing in it says how images are prepared: they are taken to be as those of its kind, 8-bit RGB")
    if form in WHOLE:
        written.check_whole(what, form, config)
        lines = table.of(what, which, whole=True)
        with _beside(dst) as part:
            told = written.orbax(what, part, config) if form == "orbax" else written.pth_tar(what, part)
    else:
        head = None if classifier is None else probe.read(Path(classifier).expanduser(), what, which)
        goods = source.portable(what, which, head, licence)
        lines = table.of(what, which, whole=False, lost=_lost(what, goods, form))
        if form == "huggingface" and huggingface_folders.cuts_elsewhere(goods):
            lines.append(OFF)
        with _beside(dst) as part:
            told = FROM_PORTABLE[form](goods, part)
    for line in [*lines, told.agreement, *told.notes]:
        say(line)
    on = f"moco-jax train {shlex.join([*flags, f'--workdir={dst}'])}"
    how = f"training goes on by {on}" if flags else f"training goes on by the page and flags of the run: {on}"
    say(f"written: {dst}" + (f"; {how}" if form == "orbax" else ""))


def _check_flags(
    form: str, which: str, config: Config | None, classifier: str | Path | None, licence: str | None
) -> None:
    """ConfigError for flags that are unknown or do not go together."""
    if form not in FORMATS:
        raise unknown("--format", form, FORMATS)
    if which not in ("online", "target"):
        raise ConfigError(f"--encoder is {which!r}; it must be online or target")
    if which != "online" and form in WHOLE:
        raise ConfigError(f"--format={form} holds both encoders: leave --encoder out")
    if config is not None and form != "orbax":
        raise ConfigError(f"--config is read by --format=orbax alone, not by {form}")
    if licence is not None and form not in ("timm", "huggingface"):
        raise ConfigError(f"--license goes into a model card, and --format={form} has none")
    if licence is not None and not licence.strip():
        raise ConfigError("--license is empty: name one, such as apache-2.0, or leave it out")
    if classifier is not None and form in (*WHOLE, "detectron2"):
        raise ConfigError(f"--classifier goes with a backbone alone, and --format={form} has no place for one")


def _lost(what: source.Source, goods: Portable, form: str) -> list[str]:
    """What of a backbone's goods a format has no place for, and no assumption stands in for."""
    classifier, lost = goods.classifier, []
    if form == "detectron2" and classifier is not None:
        lost.append(f"the classifier of {len(classifier.bias)} classes, which has no place there")
    if form == "pth" and classifier is not None and classifier.names is not None:
        lost.append(f"the names of its {len(classifier.names)} classes, which have no place there")
    if form == "pth" and goods.pixels is not None and not (what.found is not None and what.found.assumed):
        lost.append("how images are prepared, which has no place there")
    if form in ("pth", "detectron2"):  # without a card
        lost.append(f"where the weights come from ({goods.origin}). {goods.license_note}".rstrip())
    return lost


def _check_destination(dst: Path) -> None:
    """ConfigError where `dst` is taken, or lies among a run's checkpoints; nothing is read before."""
    if dst.exists() or dst.is_symlink():
        raise ConfigError(f"{dst} is there already: give another name, or remove it")
    if dst.name in ("", ".."):
        raise ConfigError(f"{dst} ends in no name that something new could have: give one")
    try:
        above = (*dst.absolute().parents, *dst.absolute().resolve().parents)
    except (OSError, RuntimeError, ValueError) as error:  # links that lead to themselves; names that none can have
        raise ConfigError(f"{one_line(repr(str(dst)), 200)} cannot be written ({error})") from None
    for folder in above:
        if folder.name == "checkpoints" and (folder.parent / "config.json").exists():
            raise ConfigError(f"{dst} lies among the checkpoints of {folder.parent}; write elsewhere")


@contextlib.contextmanager
def _beside(dst: Path) -> Iterator[Path]:
    """A name in a new folder beside `dst`: what is written there takes its place when all went well, or is gone."""
    made = [parent for parent in dst.absolute().parents if not parent.exists()]
    try:
        dst.absolute().parent.mkdir(parents=True, exist_ok=True)  # as train makes those of a workdir
        folder = Path(tempfile.mkdtemp(prefix=f".{dst.name[:50]}.", dir=dst.absolute().parent))
    except OSError as error:
        raise ConfigError(f"{dst} cannot be written ({error.strerror or error})") from None
    try:
        yield folder / dst.name
        _take_place(folder / dst.name, dst)
    except OSError as error:
        raise ConfigError(f"{dst} cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in made if not dst.exists() else ():
            with contextlib.suppress(OSError):  # somebody uses it by now
                parent.rmdir()


def _take_place(part: Path, dst: Path) -> None:
    """Give what is finished its name; ConfigError where another one has it by now, also at this very moment."""
    folder = part.is_dir()
    try:
        if folder:
            dst.mkdir()  # alone of all who try; what is empty may be renamed over
        else:
            dst.touch(exist_ok=False)
    except FileExistsError:
        raise ConfigError(f"{dst} is there by now, made by something else: give another name") from None
    try:
        part.rename(dst)
    except BaseException:  # Ctrl-C too
        with contextlib.suppress(OSError):  # it is filled by now
            dst.rmdir() if folder else dst.unlink()
        raise
