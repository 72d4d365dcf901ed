"""Runs every Python snippet of a page, each in an empty namespace after the first: python snippets.py PAGE.

It imports nothing of the tests, so that an environment with the wheel alone can run it.
"""

import re
import sys
import time
from pathlib import Path


def snippets(text: str) -> list[tuple[str, str]]:
    """(the heading above it, code) of every Python snippet of a page."""
    found, heading = [], ""
    for part in re.finditer(r"^#+ ([^\n]*)$|^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        heading = part[1] or heading
        if part[2]:
            found.append((heading, part[2]))
    return found


if __name__ == "__main__":
    page = Path(sys.argv[1])
    (_, first), *others = snippets(page.read_text())
    for heading, code in others:
        began, names = time.perf_counter(), {"__name__": "__main__"}
        for text in (first, code):
            exec(compile(text, f"{page.name}: {heading}", "exec"), names)
        print(f"ran: {heading} ({time.perf_counter() - began:.0f} s)", flush=True)
