"""One HTML page with everything inside, and its pictures beside it; it opens without a server or a network."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from moco_jax.config import flat
from moco_jax.reports import table, verdict
from moco_jax.reports.curves import Picture, Shown

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #fdfdfc; --faint: #666; --line: #d8d8d4; --card: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e6e3; --paper: #17181a; --faint: #a5a29c; --line: #3a3c40; --card: #202225; }
}
body { margin: 0 auto; max-width: 76rem; padding: 1.5rem; font: 16px/1.5 system-ui, sans-serif; color: var(--ink);
  background: var(--paper); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; font-size: .9rem; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
.verdict { border-left: 5px solid; padding: .6rem 1rem; margin: .6rem 0; background: var(--card); }
.learning { border-color: #009e73; } .early { border-color: #7a7a7a; } .trouble { border-color: #d55e00; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); gap: 1rem; }
.wide { grid-template-columns: 1fr; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 6px; padding: .6rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 3px; display: block; }
figcaption { font-size: .85rem; color: var(--faint); margin-top: .4rem; }
figcaption b { color: var(--ink); }
pre { white-space: pre-wrap; font-size: .85rem; } caption { text-align: left; color: var(--faint); }
.missing { color: var(--faint); font-size: .9rem; }
"""


class Section(NamedTuple):
    """A heading, blocks of HTML, pictures, and {title: why} of those that could not be made."""

    title: str
    pictures: Sequence[Picture]
    missing: Mapping[str, str]
    blocks: Sequence[str] = ()


def write(folder: Path, shown: Sequence[Shown], sections: Sequence[Section]) -> list[Path]:
    """Write each picture as PNG and report.html, each whole or not at all, the page last; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {f"{p.name}.png": p.png for s in sections for p in s.pictures}
    files["report.html"] = page(shown, sections).encode()
    for name, content in files.items():
        part = folder / f"{name}.part"
        part.write_bytes(content)
        part.replace(folder / name)
    return [folder / name for name in files]


def page(shown: Sequence[Shown], sections: Sequence[Section]) -> str:
    """The whole page: verdicts, numbers, pictures as data URIs."""
    title = "Report of " + ", ".join(s.label for s in shown)
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{_safe(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body><main>",
        f"<h1>{_safe(title)}</h1>",
        *(_verdict(s, len(shown) > 1) for s in shown),
        "<h2>Numbers</h2>",
        _table(_numbers(shown)),
    ]
    if differing := _differing(shown):
        parts += ["<h2>What the configs differ in</h2>", _table(differing)]
    for section in sections:
        wide = " wide" if section.title != "Curves" else ""
        parts += [f"<h2>{_safe(section.title)}</h2>", *section.blocks, f'<div class="grid{wide}">']
        parts += [_figure(p) for p in section.pictures]
        parts.append("</div>")
        parts += [
            f'<p class="missing">Missing: {_safe(name)}: {_safe(why)}.</p>' for name, why in section.missing.items()
        ]
    return "\n".join([*parts, "</main></body></html>", ""])


def words(title: str, text: str) -> str:
    """A block of a section: text as a terminal shows it."""
    return f"<h3>{_safe(title)}</h3><pre>{_safe(text)}</pre>"


def tabled(title: str, made: table.Table) -> str:
    """A block of a section: a table of accuracies."""
    return f"<h3>{_safe(title)}</h3>{table.html(made)}"


def _verdict(s: Shown, several: bool) -> str:
    found = verdict.of(s.run)
    look = {verdict.LEARNING: "learning", verdict.EARLY: "early"}.get(found.kind, "trouble")
    who = f"{_safe(s.label)}: " if several else ""
    advice = f"<br>What to do: {_safe(found.advice)}." if found.advice else ""
    return f'<div class="verdict {look}"><b>{who}{_safe(found.kind)}</b><br>{_safe(_upper(found.cause))}.{advice}</div>'


def _numbers(shown: Sequence[Shown]) -> list[list[str]]:
    head = [
        "run",
        "steps",
        "images",
        "loss",
        "chance",
        "kNN",
        "effective rank",
        "positive / negative cosine",
        "own old keys",
    ]
    rows = []
    for s in shown:
        knn = s.run.series.get("knn_top1", {})
        rows.append(
            [
                s.label,
                f"{s.run.step} of {s.run.total}",
                _number(s.run.images, "d"),
                _number(verdict.late(s.run, "loss"), ".3f"),
                _number(s.run.chance, ".3f"),
                _number(knn[max(knn)] if knn else None, ".1%"),
                _number(verdict.late(s.run, "effective_rank"), ".1f"),
                f"{_number(verdict.late(s.run, 'positive_similarity'), '.2f')} / "
                f"{_number(verdict.late(s.run, 'negative_similarity'), '.2f')}",
                _number(verdict.own_keys(s.run), ".2f"),
            ]
        )
    return [head, *rows]


def _differing(shown: Sequence[Shown]) -> list[list[str]]:
    """Keys of the config that are not the same in all runs; no row for one run."""
    configs = [flat(s.run.config) for s in shown]
    names = sorted({name for c in configs for name in c if any(c.get(name) != other.get(name) for other in configs)})
    if not names:
        return []
    return [["key", *(s.label for s in shown)], *([n, *(str(c.get(n, "")) for c in configs)] for n in names)]


def _table(rows: Sequence[Sequence[str]]) -> str:
    head, *body = rows
    lines = ["<table><thead><tr>", *(f'<th scope="col">{_safe(c)}</th>' for c in head), "</tr></thead><tbody>"]
    for row in body:
        lines.append("<tr>" + "".join(f"<td>{_safe(c)}</td>" for c in row) + "</tr>")
    return "".join([*lines, "</tbody></table>"])


def _figure(p: Picture) -> str:
    source = f"data:image/png;base64,{base64.b64encode(p.png).decode()}"
    caption = f"<figcaption><b>{_safe(p.title)}.</b> {_safe(p.note)}</figcaption>"
    return f'<figure><img alt="{_safe(p.alt)}" src="{source}">{caption}</figure>'


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]


def _safe(text: str) -> str:
    return html.escape(text, quote=True)
