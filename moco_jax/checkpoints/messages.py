"""Names and texts of a stranger's file in our messages: few, short and on one line."""

from collections.abc import Iterable


def listed(names: Iterable[object]) -> str:
    """The first names, and how many more there are."""
    texts = [one_line(str(name), 60) for name in names]
    return ", ".join(texts[:3]) + (f" and {len(texts) - 3} more" if len(texts) > 3 else "")


def one_line(text: str, most: int) -> str:
    """A text of a stranger's as part of a message: on one line, without control characters, `most` long."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text[: 4 * most]).split())
    return line if len(line) <= most else line[: most - 3] + "..."
