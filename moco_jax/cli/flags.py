"""`--config=PAGE --config.a.b=v` and a few named flags, read without importing JAX."""

import io
import math
import os
import re
import sys
import traceback
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from moco_jax import config, pages
from moco_jax.cli import help_text, xla
from moco_jax.config import ConfigError

PEER_DIED = 134  # as of JAX, which aborts


def parse(
    argv: Sequence[str], *, page: str, named: Mapping[str, tuple[Any, str]], usage: str
) -> tuple[ConfigDict, dict[str, Any]]:
    """The config page with its overrides applied, and the values of the named flags {name: (default, help)}.

    A flag whose default is False is a switch: --name, or --name=true and --name=false. Raises ConfigError for an
    unknown or mistyped flag or key; exits 0 after printing help.
    """
    argv = _with_page_paths(argv, page)
    if any(a in ("--help", "-h", "-help") for a in argv):
        print(help_text.of_page(page, _page_of(argv), named, usage))
        sys.exit(0)
    argv, cleared = _checked(argv, _page_of(argv), named)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=["program", *argv], lock_config=True)
    for name, (default, text) in named.items():
        if isinstance(default, bool):
            flags.DEFINE_boolean(name, default, text, flag_values=values)
        else:
            flags.DEFINE_string(name, None if default is None else str(default), text, flag_values=values)
    try:
        rest = values(["program", *argv])[1:]
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(_one_line(error, argv)) from None
    if rest:
        raise ConfigError(f"unexpected argument {rest[0]!r}; flags are written --name=value")
    chosen = typing.cast(ConfigDict, values["config"].value)
    chosen.update_from_flattened_dict(dict.fromkeys(cleared))
    return chosen, {name: _typed(name, default, values[name].value) for name, (default, _) in named.items()}


def parse_without_page(
    argv: Sequence[str],
    *,
    places: Mapping[str, str],
    named: Mapping[str, tuple[Any, str]],
    usage: str,
    repeated: bool = False,
) -> tuple[list[str], dict[str, Any]]:
    """Arguments by their place {name: help}, and named flags {name: (default, help)}: for a command without a config.

    The last place may be given several times where `repeated`. A flag whose default is a number holds one of its kind,
    and one whose default is False is a switch. Raises ConfigError for anything else; exits 0 after printing help.
    """
    if any(a in ("--help", "-h", "-help") for a in argv):
        lines = [usage, "", *(f"  {name:<27}{text}" for name, text in places.items()), "", "flags:"]
        print("\n".join(lines + help_text.of_flags(named)))
        sys.exit(0)
    given, values = [], {name: default for name, (default, _) in named.items()}
    for argument in argv:
        match = re.fullmatch(r"--?([^=]+)(?:=(.*))?", argument, re.DOTALL)
        if match is None:
            given.append(argument)
            continue
        name, value = match.groups()
        if name not in named:
            raise config.unknown("flag", name, named)
        if value is None and named[name][0] is not False:
            raise ConfigError(f"write --{name}=VALUE, with an equals sign")
        values[name] = _typed(name, named[name][0], "true" if value is None else value)
    if len(given) < len(places) or (len(given) > len(places) and not repeated):
        what = (
            f"unexpected argument {given[-1]!r}"
            if len(given) > len(places)
            else f"{list(places)[len(given)]} is missing"
        )
        raise ConfigError(f"{what}: {usage.splitlines()[0]}")
    return given, values


def run(command: Callable[[Sequence[str]], int], argv: Sequence[str] | None, *, error_status: int = 1) -> int:
    """Run a command: an error of the user's ends in one line on stderr and its status, without a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files are bytes, and need not be text
    try:
        return command(list(sys.argv[1:] if argv is None else argv))
    except BrokenPipeError:  # the reader of our output has seen enough
        return 141
    except (ConfigError, FloatingPointError, OSError) as error:
        _tell(f"error: {error}")
        return _left(error_status)
    except KeyboardInterrupt as stop:
        _tell(f"stopped{f': {stop}' if str(stop) else ''}")
        return 130
    except Exception as error:
        lost = _lost_peer(error)
        if lost is not None:
            _left(PEER_DIED, f"error: {lost}\n")
        _left(1, traceback.format_exc())
        raise


def _tell(text: str) -> None:
    """One line on stderr, which may have no reader any more."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        from moco_jax.logs import silence

        silence(sys.stderr)


def _lost_peer(error: Exception) -> str | None:
    if "jax" not in sys.modules:
        return None
    from moco_jax import parallel

    return parallel.lost_peer(error)


def _left(status: int, said: str = "") -> int:
    if "jax" not in sys.modules:
        return status
    from moco_jax import parallel

    return parallel.left(status, said)


def prepare_environment() -> None:
    """What must be in the environment before JAX is imported; raises ConfigError for what JAX could not be with."""
    count = os.environ.get("JAX_NUM_CPU_DEVICES", "1")
    if not re.fullmatch(r"-1|0*[1-9]\d*", count):
        raise ConfigError(f"JAX_NUM_CPU_DEVICES must be a whole number above 0, not {count!r}")
    # Collectives of several CPU devices deadlock when XLA has as few pool threads as there are cores.
    os.environ.setdefault("NPROC", str(max(32, os.cpu_count() or 1)))
    os.environ["XLA_FLAGS"] = xla.flags_with_ours(os.environ.get("XLA_FLAGS", ""))


def evaluated(evaluate: Callable[[], str]) -> int:
    """What an evaluation says, said by one process of those that work on it together."""
    from moco_jax import parallel

    parallel.start()
    try:
        say(evaluate())
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command goes on from what was kept") from None
    return 0


def say(text: str) -> None:
    """Print, by one process of several."""
    from moco_jax import parallel

    if parallel.is_first_process():
        print(text, flush=True)


def _with_page_paths(argv: Sequence[str], page: str) -> list[str]:
    """argv with `--config=NAME` as `--config=PATH`, and the default page where none is given."""
    out, given = [], False
    arguments = list(argv)
    for i, argument in enumerate(arguments):
        match = re.fullmatch(r"--?config=(.*)", argument)
        if match and given:
            raise ConfigError(f"--config is given twice, the second time as {match[1]}: give one page")
        if match:
            argument, given = f"--config={pages.find(match[1])}", True
        elif argument in ("--config", "-config"):
            raise ConfigError(
                f"write --config={arguments[i + 1] if i + 1 < len(arguments) else 'PAGE'}, with an equals sign"
            )
        out.append(argument)
    return out if given else [f"--config={pages.find(page)}", *out]


def _page_of(argv: Sequence[str]) -> ConfigDict:
    return pages.load(next(a for a in reversed(argv) if re.match(r"--?config=", a)).split("=", 1)[1])


def _checked(
    argv: Sequence[str], page: ConfigDict, named: Mapping[str, tuple[Any, str]]
) -> tuple[list[str], list[str]]:
    """argv without overrides that set a key to None, and those keys; raises ConfigError for a flag that cannot be.

    ml_collections reads "None" as text of the key's type, and reports slips in Python's words.
    """
    kinds = {key: value for name in page for key, value in _kinds(page, name)}
    kept, cleared = [], []
    for argument in argv:
        match = re.fullmatch(r"--?(no)?(config\.)?([^=]+)(?:=(.*))?", argument, re.DOTALL)
        if match is None or match[3] == "config":
            kept.append(argument)
            continue
        negated, is_key, name, value = match.groups()
        if not is_key:
            _check_named((negated or "") + name, value, named, kinds)
        elif name not in kinds:
            raise _unknown_key(name, kinds, page)
        elif name == "mechanism" and value != page.mechanism:
            raise ConfigError(
                f"the mechanism is the page's ({page.mechanism}), as it decides which sections there are: use another "
                f"--config, such as one with {value!r}"
            )
        elif value == "None":
            cleared.append(name)
            continue
        elif value is not None and not _fits(kinds[name], value):
            words = {int: "a whole number", float: "a number", bool: "true or false"}
            raise ConfigError(f"config key '{name}' must be {words[kinds[name]]}, not {value!r}")
        kept.append(argument)
    return kept, cleared


def _unknown_key(name: str, kinds: Mapping[str, Any], page: ConfigDict) -> ConfigError:
    """A key that the page lacks: perhaps of a section of other mechanisms."""
    section = name.split(".")[0]
    owners = [mechanism for mechanism, sections in config.SECTIONS.items() if section in sections]
    if not owners or "mechanism" not in page or page.mechanism in owners:
        return config.unknown("config key", name, kinds)
    own = ", ".join(f"{s}." for s in config.SECTIONS[page.mechanism])
    return ConfigError(
        f"config key {name!r} is of mechanism {' or '.join(owners)}; this page is of {page.mechanism}, whose own keys "
        f"begin with {own}"
    )


def _check_named(name: str, value: str | None, named: Mapping[str, tuple[Any, str]], keys: Mapping[str, Any]) -> None:
    """Raises ConfigError for a flag that is not `named` or is empty, and a switch that is neither true nor false."""
    switches = [n for n, (default, _) in named.items() if isinstance(default, bool)]
    if name not in named and name not in [f"no{n}" for n in switches]:
        raise config.unknown("flag", name, [*named, "config", *(f"config.{k}" for k in keys)])
    if value == "":  # of an empty variable of a script; as a path it would be the folder one is in
        raise ConfigError(f"--{name}= is empty: give a value, or leave the flag out")
    if name in switches and value is not None and not _fits(bool, value):
        raise ConfigError(f"--{name} must be true or false, not {value!r}")


def _typed(name: str, default: Any, value: Any) -> Any:
    """The value of a flag as its default is: a number, a switch, or what it was given as."""
    if not isinstance(default, bool | int | float) or not isinstance(value, str):
        return value
    kind = type(default)
    words = {bool: "true or false", int: "a whole number", float: "a number"}
    if (
        not _fits(kind, value)
        or (kind is int and int(value) < 0)
        or (kind is float and not math.isfinite(float(value)))
    ):
        raise ConfigError(f"--{name} must be {words[kind]}, not {value!r}")
    return value.lower() in ("true", "1") if kind is bool else kind(value)


def _kinds(page: ConfigDict, name: str) -> list[tuple[str, type]]:
    """Keys below `name` and the types that they hold."""
    section = page[name]
    if isinstance(section, ConfigDict):
        return [(f"{name}.{key}", section.get_type(key)) for key in section]
    return [(name, page.get_type(name))]


def _fits(kind: type, value: str) -> bool:
    if kind is bool:
        return value.lower() in ("true", "false", "1", "0")
    if kind not in (int, float):
        return True
    try:
        kind(value)
    except ValueError:
        return False
    return True


def _one_line(error: Exception, argv: Sequence[str]) -> str:
    text = " ".join(str(error.args[0] if isinstance(error, KeyError) else error).split())
    overrides = [a for a in argv if re.match(r"--?config\.", a)]
    return f"{text}" + (f" (among: {' '.join(overrides)})" if overrides and "config." not in text else "")
