"""What `--help` prints."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from moco_jax import pages


def of_page(default: str, page: ConfigDict, named: Mapping[str, tuple[Any, str]], usage: str) -> str:
    """Usage, flags, the shipped pages, and every key of a page with its value."""
    lines = [
        usage,
        "",
        "flags:",
        f"  --config=PAGE            a file or a shipped page: {_shipped(page)} (default {default})",
    ]
    lines += of_flags(named)
    lines += ["  --config.KEY=VALUE       override any key of the page:", ""]
    lines += [f"  {f'{key} = {value!r}':<44}{comment}" for key, value, comment in pages.explained(page)]
    return "\n".join(lines)


def of_flags(named: Mapping[str, tuple[Any, str]]) -> list[str]:
    """A switch takes no value; a text that is not given has no default; numbers as people write them."""

    def line(name: str, default: Any, text: str) -> str:
        if default is False:
            return f"  {f'--{name}':<25}{text}"
        shown = f"{default:g}" if isinstance(default, float) else default
        return f"  {f'--{name}=':<25}{text}" + (f" (default {shown})" if default is not None else "")

    return [line(name, default, text) for name, (default, text) in named.items()]


def _shipped(like: ConfigDict) -> str:
    """Names of the shipped pages of the same kind as a page: of training, or of the same evaluation."""
    return ", ".join(n for n in pages.names() if pages.load(n).get("protocol") == like.get("protocol"))
