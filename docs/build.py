"""Builds the documentation as HTML: the written pages, the notebook, the generated reference.

    python docs/build.py [build/docs]

Needs nothing beyond the installed packages; the pages open without a network.
"""

from __future__ import annotations

import base64
import html
import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from markdown_it import MarkdownIt
from reference import pages as reference_pages

DOCS = Path(__file__).parent
ROOT = DOCS.parent

NAVIGATION: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Learn", ("tutorial.md", "own-encoder.md", "own-experiment.md", "results.ipynb")),
    ("Do", ("how-to/continue.md", "how-to/inputs.md", "how-to/checkpoints.md",
            "how-to/stopping.md", "search.md", "how-to/results.md", "how-to/machine.md",
            "monitoring.md", "cluster/README.md")),
    ("Understand", ("architecture.md", "differences.md", "log.md")),
    ("Reference", ("reference/options.md", "reference/columns.md", "reference/commands.md",
                   "reference/experiments.md", "reference/rules.md", "reference/choices.md",
                   "reference/api.md")),
)  # fmt: skip
"""The sidebar; pages that it does not name stand under "More", but for those of a folder whose
README.md it names."""

STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --soft: #59636e; --line: #d5dae0;
  --back: #fff; --box: #f4f6f8; --link: #0b57b0; }
@media (prefers-color-scheme: dark) { :root { --text: #dde3ea; --soft: #98a3af; --line: #3a424c;
  --back: #14181d; --box: #1e242b; --link: #7db4f5; } }
* { box-sizing: border-box; }
body { margin: 0; color: var(--text); background: var(--back);
  font: 16px/1.55 system-ui, sans-serif; display: flex; }
nav { flex: 0 0 16rem; height: 100vh; position: sticky; top: 0; overflow: auto;
  padding: 1.2rem; border-right: 1px solid var(--line); font-size: .93rem; }
nav h2 { font-size: .75rem; text-transform: uppercase; letter-spacing: .06em;
  color: var(--soft); margin: 1.3rem 0 .3rem; border: 0; padding: 0; }
nav a { display: block; padding: .12rem 0; color: inherit; text-decoration: none; }
nav a:hover { text-decoration: underline; }
nav a[aria-current] { font-weight: 650; color: var(--link); }
nav summary { display: none; cursor: pointer; font-weight: 650; }
main { flex: 1; min-width: 0; max-width: 60rem; padding: 1rem 2.5rem 4rem; }
h1 { font-size: 1.8rem; line-height: 1.2; } h2 { margin-top: 2.2rem; font-size: 1.3rem;
  border-bottom: 1px solid var(--line); padding-bottom: .2rem; }
h3 { font-size: 1.05rem; margin-top: 1.6rem; } a { color: var(--link); }
code { font: .87em ui-monospace, Menlo, Consolas, monospace; background: var(--box);
  padding: .1em .3em; border-radius: 3px; overflow-wrap: anywhere; }
pre { background: var(--box); padding: .8rem 1rem; overflow-x: auto; border-radius: 6px;
  line-height: 1.4; } pre code { padding: 0; background: none; overflow-wrap: normal; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; margin: .6rem 0; }
th, td { text-align: left; vertical-align: top; padding: .3rem .7rem .3rem 0;
  border-bottom: 1px solid var(--line); } thead:not(:has(th:not(:empty))) { display: none; }
td code { overflow-wrap: normal; background: none; padding: 0; }
.output table { border: 0; } .output td, .output th { border-left: 0; border-right: 0;
  text-align: right; padding-left: .7rem; }
.output pre { font-size: .87em; } li { margin: .2rem 0; } li > p { margin: .2rem 0; }
img { max-width: 100%; background: #fff; }
.output { border-left: 3px solid var(--line); padding-left: .8rem; margin: .5rem 0 1.2rem; }
h2 > a.at, h3 > a.at { visibility: hidden; text-decoration: none; padding-left: .3em; }
h2:hover > a.at, h3:hover > a.at { visibility: visible; }
@media (max-width: 50rem) { body { display: block; } main { padding: .5rem 1rem 3rem; }
  nav { height: auto; position: static; border-right: 0; border-bottom: 1px solid var(--line);
  padding: .6rem 1rem; } nav summary { display: block; } }
@media print { nav { display: none; } main { max-width: none; padding: 0; } }
"""


def slug(text: str) -> str:
    """Anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")


def render(markdown: str) -> str:
    """Markdown as HTML, with anchors at headings and tables that scroll."""
    parser = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    tokens = parser.parse(re.sub(r"^<!-- .*? -->\n", "", markdown, flags=re.M))
    seen: dict[str, int] = {}
    for token, inline in itertools.pairwise(tokens):
        if token.type == "heading_open":
            children = inline.children or []
            name = slug("".join(c.content for c in children if c.type in ("text", "code_inline")))
            at = f"{name}-{seen[name]}" if name in seen else name
            seen[name] = seen.get(name, 0) + 1
            token.attrSet("id", at)
    text = parser.renderer.render(tokens, parser.options, {})
    text = re.sub(
        r'<(h[23]) id="([^"]*)">(.*?)</\1>',
        r'<\1 id="\2">\3<a class="at" href="#\2" aria-label="link to this heading">#</a></\1>',
        text,
    )
    text = text.replace("<table>", '<div class="wide"><table>').replace(
        "</table>", "</table></div>"
    )
    return re.sub(r'href="(?!https?:)([^"#]*)\.(?:md|ipynb)(#[^"]*)?"', _as_html, text)


def _as_html(match: re.Match[str]) -> str:
    return f'href="{match[1]}.html{match[2] or ""}"'


def notebook(path: Path) -> str:
    """A notebook as HTML: text, code, and the outputs that it holds."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(render(source))
            continue
        parts.append(f"<pre><code>{html.escape(source)}</code></pre>")
        shown = [_output(output) for output in cell.get("outputs", [])]
        if any(shown):
            parts.append(f'<div class="output">{"".join(shown)}</div>')
    return "\n".join(parts)


def _output(output: dict[str, Any]) -> str:
    if output["output_type"] == "stream":
        return f"<pre>{html.escape(''.join(output['text']))}</pre>"
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="plot" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    if "image/svg+xml" in data:
        picture = base64.b64encode("".join(data["image/svg+xml"]).encode()).decode()
        return f'<img alt="plot" src="data:image/svg+xml;base64,{picture}">'
    if "text/html" in data:
        table = re.sub(r"<style.*?</style>", "", "".join(data["text/html"]), flags=re.S)
        return f'<div class="wide">{table}</div>'
    return f"<pre>{html.escape(''.join(data.get('text/plain', '')))}</pre>"


def title_of(text: str, path: str) -> str:
    """The first heading."""
    found = re.search(r"^# (.+)$", text, re.M)
    return found[1].strip().replace("`", "") if found else path


def build(out: Path) -> list[Path]:
    """Write every page to `out` and return what was written."""
    sources: dict[str, str] = {}
    for path in sorted(DOCS.rglob("*.md")):
        sources[str(path.relative_to(DOCS))] = path.read_text()
    for path in sorted(DOCS.rglob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        sources[str(path.relative_to(DOCS))] = "".join(cells[0]["source"])
    sources |= {f"reference/{name}": text for name, text in reference_pages().items()}
    titles = {name: title_of(text, name) for name, text in sources.items()}
    bodies = {
        name: notebook(DOCS / name) if name.endswith(".ipynb") else render(text)
        for name, text in sources.items()
    }
    named = {name for _, names in NAVIGATION for name in names} | {"index.md"}
    led = {name.removesuffix("README.md") for name in named if name.endswith("/README.md")}
    more = tuple(
        name
        for name in sources
        if name not in named
        and name != "reference/index.md"
        and not any(name.startswith(folder) for folder in led)
    )
    sections = (*NAVIGATION, *([("More", more)] if more else []))
    written = []
    places = {name: f"{name.rpartition('.')[0]}.html" for name in sources}
    for name, body in bodies.items():
        path = out / places[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        up = "../" * name.count("/")
        links = [f'<a href="{up}index.html"{_here(name, "index.md")}>etrm-tune</a>']
        for heading, names in sections:
            links.append(f"<h2>{heading}</h2>")
            links += [
                f'<a href="{up}{places[n]}"{_here(name, n)}>{html.escape(titles[n])}</a>'
                for n in names
                if n in sources
            ]
        path.write_text(_whole(titles[name], "\n".join(links), _outside(body, name)))
        written.append(path)
    return written


def _here(name: str, other: str) -> str:
    return ' aria-current="page"' if name == other else ""


def _outside(body: str, name: str) -> str:
    """Links to files beside the pages lose their target and keep their path as a title."""
    here = Path(name).parent

    def keep(match: re.Match[str]) -> str:
        target = match[1].partition("#")[0]
        if not target or target.endswith(".html") or re.match(r"https?:|data:", target):
            return match[0]
        path = (DOCS / here / target).resolve()
        return match[0] if not path.is_relative_to(ROOT) else f'title="{path.relative_to(ROOT)}"'

    return re.sub(r'href="([^"]*)"', keep, body)


def _whole(title: str, links: str, body: str) -> str:
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)} – etrm-tune</title><style>{STYLE}</style></head>
<body><nav><details open><summary>Pages</summary>{links}</details></nav>
<main>{body}</main>
<script>if (innerWidth < 800) document.querySelector("nav details").open = false;</script>
</body></html>
"""


if __name__ == "__main__":
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "docs")
    made = build(folder)
    print(f"{len(made)} pages: {folder / 'index.html'}")
