"""Frozen dataclasses as locked ConfigDicts for pages and flags, and back: complete, typed, without conversion."""

import dataclasses
import difflib
import types
import typing
from typing import Any

from ml_collections import ConfigDict, config_dict


class ConfigError(ValueError):
    """Something the user wrote cannot be run; the message says what, the numbers, and what to do."""


def unknown(what: str, name: str, known: typing.Iterable[str]) -> ConfigError:
    """The error for a name that is not in a table, with the nearest one that is."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, 1, 0.5) or [k for k in known if k.split(".")[-1] == name]
    hint = f"; did you mean {near[0]!r}?" if near else ""
    listed = f" (one of: {', '.join(known)})" if len(known) <= 12 else " (--help lists all)"
    return ConfigError(f"{what} {name!r} is unknown{hint}{'' if near and len(known) > 12 else listed}")


def to_dict(section: Any, skip: typing.Iterable[str] = ()) -> ConfigDict:
    """A dataclass as a ConfigDict without the fields `skip`; a None stays typed for an override."""
    out = ConfigDict()
    hints = typing.get_type_hints(type(section))
    for f in dataclasses.fields(section):
        if f.name in skip:
            continue
        value = getattr(section, f.name)
        if dataclasses.is_dataclass(value):
            out[f.name] = to_dict(value, ())
        elif optional(hints[f.name]) is not None:  # None now, yet typed for an override
            kind = optional(hints[f.name])
            out[f.name] = config_dict.FieldReference(value, field_type=typing.get_origin(kind) or kind)
        else:
            out[f.name] = value
    return out


def optional(hint: Any) -> Any:
    """The X of `X | None`, or None."""
    if isinstance(hint, types.UnionType) and type(None) in typing.get_args(hint):
        return next(a for a in typing.get_args(hint) if a is not type(None))
    return None


def plain(values: Any) -> dict[str, Any]:
    """A ConfigDict, or a dict, as a nested plain dict."""
    return values.to_dict() if isinstance(values, ConfigDict) else dict(values)


def read(cls: type, values: dict[str, Any], path: str = "", skip: frozenset[str] = frozenset()) -> Any:
    """`values` as an instance of `cls`, whose fields `skip` become None; ConfigError names an unknown or wrong key."""
    hints = typing.get_type_hints(cls)
    known = [f.name for f in dataclasses.fields(cls) if f.name not in skip]
    for name in values:
        if name not in known:
            raise unknown("config key", path + name, [path + k for k in known])
    for name in known:
        if name not in values:
            raise ConfigError(f"config key '{path}{name}' is missing; begin a page with page()")
    typed = {name: _typed(hints[name], values[name], path + name) for name in known}
    return cls(**typed, **dict.fromkeys(skip))


def _typed(hint: Any, value: Any, path: str) -> Any:
    """`value` as `hint` says, without any conversion but int to float and list to tuple."""
    inner = optional(hint)
    if inner is not None:
        return None if value is None and not dataclasses.is_dataclass(inner) else _typed(inner, value, path)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"config key '{path}' is a section with keys of its own, not {value!r}")
        return read(typing.cast(type, hint), value, path + ".")
    if typing.get_origin(hint) is tuple:
        return _typed_tuple(typing.get_args(hint), value, path)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise ConfigError(f"config key '{path}' must be {hint.__name__}, not {value!r}")
    return value


def _typed_tuple(kinds: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)):
        raise ConfigError(f"config key '{path}' must be a tuple such as (1, 2), not {value!r}")
    if kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(value) != len(kinds):
        raise ConfigError(f"config key '{path}' must hold {len(kinds)} values, not {len(value)}: {value!r}")
    for kind, one in zip(kinds, value, strict=True):
        if kind is str and not isinstance(one, str):  # a flag's 5 is a number, where '5' was meant
            texts = tuple(map(str, value))
            raise ConfigError(f"config key '{path}' must hold texts, such as --config.{path}=\"{texts}\", not {one!r}")
    return tuple(_typed(k, v, path) for k, v in zip(kinds, value, strict=True))
