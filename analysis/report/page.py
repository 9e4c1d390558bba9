"""Pieces of an HTML page: escaped text, tables, facts, figures, sections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import pandas as pd

from analysis.report.script import SCRIPT, policy
from analysis.report.style import CSS

WIDE = 28
"""Characters from which on a column of words may break its lines."""
FOLD = 9
"""Charts of one kind that are shown at once; more are folded away."""
TEXT = ("experiment", "trial", "status", "sign", "hypothesis")


@dataclass(frozen=True)
class Section:
    """One part of the report; `name` is its anchor, `lead` one sentence under the title: what it
    shows, and which rows are in it."""

    name: str
    title: str
    body: str
    lead: str = ""


def paragraph(text: str, kind: str = "") -> str:
    """Escaped text as a paragraph."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def note(text: str) -> str:
    """What a reader has to know to read a table or chart: small print under it."""
    return paragraph(text, "note")


def items(texts: Iterable[str], *, fold: int = 0) -> str:
    """A list of escaped texts; what is beyond `fold` is folded away."""
    made = [f"<li>{escape(text)}</li>" for text in texts]
    if not fold or len(made) <= fold + 2:
        return "<ul>" + "".join(made) + "</ul>" if made else ""
    rest = f"<ul>{''.join(made[fold:])}</ul>"
    return f"<ul>{''.join(made[:fold])}</ul>{folded(f'{len(made) - fold} more', rest)}"


def folded(summary: str, inside: str) -> str:
    """Something that is opened by a click; `inside` is HTML."""
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def facts(pairs: Mapping[str, str]) -> str:
    """Names and values."""
    told = "".join(f"<dt>{escape(n)}</dt><dd>{escape(v)}</dd>" for n, v in pairs.items())
    return f'<dl class="facts">{told}</dl>'


def table(frame: pd.DataFrame, *, fold: int = 0) -> str:
    """A table of texts; columns of words stand left, long ones may break. Rows beyond `fold` are
    in a second table that is folded away."""
    if fold and len(frame) > fold + 3:
        rest = table(frame.iloc[fold:])
        return table(frame.iloc[:fold]) + folded(f"{len(frame) - fold} more rows", rest)
    kinds = {name: _kind(name, frame[name].astype(str).tolist()) for name in frame.columns}
    left = {"t": "t", "w": "t", "n": ""}
    head = "".join(
        f'<th scope="col" class="{left[kinds[name]]}">{escape(str(name))}</th>'
        for name in frame.columns
    )
    rows = [
        "".join(
            f'<td class="{kinds[name]}">{escape(str(cell))}</td>'
            for name, cell in zip(frame.columns, row, strict=True)
        )
        for row in frame.to_numpy().tolist()
    ]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def figure(svg: str, title: str, text: str = "") -> str:
    """A chart under its title; nothing where the chart is empty."""
    if not svg:
        return ""
    more = f" {escape(text)}" if text else ""
    return f"<figure><figcaption><b>{escape(title)}</b>{more}</figcaption>{svg}</figure>"


def charts(figures: Sequence[str], otherwise: str) -> str:
    """Figures side by side, those beyond `FOLD` folded away; `otherwise` where there is none."""
    made = [one for one in figures if one]
    if not made:
        return paragraph(otherwise) if otherwise else ""
    some = made if len(made) <= FOLD + 2 else made[:FOLD]
    shown = f'<div class="charts">{"".join(some)}</div>'
    if len(some) == len(made):
        return shown
    rest = f'<div class="charts">{"".join(made[FOLD:])}</div>'
    return shown + folded(f"{len(made) - FOLD} more charts", rest)


def document(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole page, with its style sheet and its script inside."""
    links = "".join(f'<a href="#{s.name}">{escape(s.title)}</a>' for s in sections)
    bodies = "".join(
        f'<section id="{s.name}"><h2>{escape(s.title)}</h2>{_lead(s)}{s.body}</section>'
        for s in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy()}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p></header>'
        f'<nav aria-label="Contents">{links}</nav><main>{bodies}</main>'
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def _lead(section: Section) -> str:
    return paragraph(section.lead, "lead") if section.lead else ""


def _kind(name: object, cells: Sequence[str]) -> str:
    if any(len(cell) > WIDE for cell in cells):
        return "w"
    words = any(cell and not (cell[0].isdigit() or cell[0] in "-–+?") for cell in cells)
    return "t" if words or name in TEXT else "n"
