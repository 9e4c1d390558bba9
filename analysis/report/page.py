"""Pieces of an HTML page: escaped text, tables, facts, figures, sections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import pandas as pd

from analysis.report.style import CSS

WIDE = 28
"""Characters from which on a column of words may break its lines."""
TEXT = ("experiment", "trial", "status", "sign", "hypothesis")


@dataclass(frozen=True)
class Section:
    """One part of the report; `name` is its anchor."""

    name: str
    title: str
    body: str


def paragraph(text: str, kind: str = "") -> str:
    """Escaped text as a paragraph."""
    return f'<p class="{kind}">{escape(text)}</p>' if kind else f"<p>{escape(text)}</p>"


def note(text: str) -> str:
    """What a reader has to know to read a table or chart: small print under it."""
    return paragraph(text, "note")


def items(texts: Iterable[str]) -> str:
    """A list of escaped texts."""
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def facts(pairs: Mapping[str, str]) -> str:
    """Names and values."""
    told = "".join(f"<dt>{escape(n)}</dt><dd>{escape(v)}</dd>" for n, v in pairs.items())
    return f'<dl class="facts">{told}</dl>'


def table(frame: pd.DataFrame, *, caption: str = "") -> str:
    """A table of texts; columns of words stand left, long ones may break."""
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
    said = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{said}<thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def figure(svg: str, title: str, text: str = "") -> str:
    """A chart under its title; nothing where the chart is empty."""
    if not svg:
        return ""
    more = f" {escape(text)}" if text else ""
    return f"<figure><figcaption><b>{escape(title)}</b>{more}</figcaption>{svg}</figure>"


def charts(figures: Sequence[str], otherwise: str) -> str:
    """Figures side by side; `otherwise` where there is none."""
    made = "".join(figures)
    return f'<div class="charts">{made}</div>' if made else paragraph(otherwise)


def document(title: str, subtitle: str, sections: Sequence[Section]) -> str:
    """The whole page, with its style sheet inside."""
    links = "".join(f'<a href="#{s.name}">{escape(s.title)}</a>' for s in sections)
    bodies = "".join(
        f'<section id="{s.name}"><h2>{escape(s.title)}</h2>{s.body}</section>' for s in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head><body>"
        f'<header><h1>{escape(title)}</h1><p class="soft">{escape(subtitle)}</p></header>'
        f'<nav aria-label="Contents">{links}</nav><main>{bodies}</main></body></html>\n'
    )


def _kind(name: object, cells: Sequence[str]) -> str:
    if any(len(cell) > WIDE for cell in cells):
        return "w"
    words = any(cell and not (cell[0].isdigit() or cell[0] in "-–+?") for cell in cells)
    return "t" if words or name in TEXT else "n"
