"""The look of the report: one style sheet for screen, phone, dark screens and paper."""

from __future__ import annotations

DASHES = ("", "6 3", "2 2", "8 3 2 3")
"""Lines differ in their dashes too: colour is never the only mark."""

ARC = (
    "#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00",
    "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25",
)  # fmt: skip
"""Colours 0 … 9 as the ARC testing interface shows them."""

CSS = """
:root{--bg:#fff;--fg:#1b1e23;--soft:#59616c;--line:#d5d9df;--panel:#f5f6f8;--good:#00694c;
--bad:#a83c00;--link:#005a8e;--c0:#0072b2;--c1:#d55e00;--c2:#009e73;--c3:#b45a8c;--c4:#b87a00;
--c5:#2b8cc4;--c6:#857a00;--c7:#1b1e23}
@media screen and (prefers-color-scheme:dark){:root{--bg:#15181c;--fg:#e7eaee;--soft:#a3acb8;
--line:#3a414a;--panel:#1e2227;--good:#4fd0a8;--bad:#ff9a5c;--link:#7cc4ee;--c0:#56a8e0;
--c1:#f08442;--c2:#2fc39a;--c3:#e29ac0;--c4:#f0b429;--c5:#7cc9f2;--c6:#f0e442;--c7:#f2f4f7}}
*{box-sizing:border-box}
html{color-scheme:light dark;scroll-behavior:smooth}
body{margin:0 auto;padding:1rem clamp(.8rem,3vw,2rem) 4rem;max-width:76rem;background:var(--bg);
color:var(--fg);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.7rem;line-height:1.2;margin:.6rem 0 .2rem}
h2{font-size:1.25rem;margin:2.4rem 0 .5rem;padding-top:.6rem;border-top:2px solid var(--line)}
h3{font-size:1rem;margin:1.3rem 0 .3rem}
p,ul,dl{margin:.4rem 0}
ul{padding-left:1.2rem}
a{color:var(--link)}
code{font:.9em ui-monospace,Menlo,Consolas,monospace;overflow-wrap:anywhere}
pre{background:var(--panel);padding:.6rem .8rem;border-radius:.4rem;overflow-x:auto;
white-space:pre-wrap}
nav{font-size:.9rem;display:flex;flex-wrap:wrap;gap:.2rem .9rem;margin:.8rem 0}
nav a{padding:.15rem 0}
.soft,figcaption,.note{color:var(--soft);font-size:.88rem}
.note,.lead{max-width:62rem}
.lead{margin-bottom:.7rem}
dl.facts{display:grid;grid-template-columns:minmax(8rem,max-content) 1fr;gap:.15rem 1rem}
dl.facts dt{color:var(--soft)}
dl.facts dd{margin:0;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:.5rem 0}
table{border-collapse:collapse;font-size:.88rem;font-variant-numeric:tabular-nums}
th,td{padding:.28rem .6rem;border-bottom:1px solid var(--line);text-align:right;
vertical-align:top}
th{font-weight:600;color:var(--soft);max-width:9rem;vertical-align:bottom}
td.t,th.t{text-align:left}
td.n{white-space:nowrap}
td.w{text-align:left;min-width:15rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,21rem),1fr));
gap:1rem;align-items:start}
figure{margin:0;break-inside:avoid;min-width:0}
figcaption b{color:var(--fg)}
svg{display:block;width:100%;height:auto;max-width:34rem}
svg text{fill:var(--soft);font:11px system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
svg .grid{stroke:var(--line);stroke-width:1}
svg .rung{stroke:var(--soft);stroke-width:1;stroke-dasharray:3 3}
svg .faint{stroke:var(--line);stroke-width:1.2;fill:none}
svg .label{fill:var(--fg)}
svg.parallel{max-width:none}
svg .axis{stroke:var(--soft);stroke-width:1.4;pointer-events:none}
svg .tick{fill:var(--fg);paint-order:stroke;stroke:var(--bg);stroke-width:3px;pointer-events:none}
svg .cross{stroke:var(--soft);stroke-width:1;pointer-events:none}
[data-tip]{cursor:help}
#tip{position:fixed;z-index:9;pointer-events:none;background:var(--fg);color:var(--bg);
padding:.25rem .5rem;border-radius:.3rem;font-size:.8rem;line-height:1.35;white-space:pre-line;
max-width:min(24rem,92vw);font-variant-numeric:tabular-nums}
.legend{display:flex;flex-wrap:wrap;gap:.1rem .9rem;font-size:.85rem;margin:.3rem 0 .6rem}
.legend svg{display:inline-block;width:26px;height:10px;vertical-align:middle;margin-right:.3rem}
.cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,20rem),1fr));gap:.7rem}
.card{background:var(--panel);border-left:4px solid var(--line);border-radius:.3rem;
padding:.6rem .8rem;break-inside:avoid;overflow-wrap:anywhere}
.card.yes{border-color:var(--good)}.card.no{border-color:var(--bad)}
.card h3{margin:0}.card p{margin:.3rem 0;font-size:.9rem}
.card .v{font-weight:600}.yes .v{color:var(--good)}.no .v{color:var(--bad)}
.next{border:2px solid var(--c0);border-radius:.4rem;padding:.6rem .9rem;margin:1rem 0}
.puzzle{border-top:1px solid var(--line);padding:.7rem 0;break-inside:avoid}
.grids{display:flex;flex-wrap:wrap;gap:.6rem .8rem;align-items:flex-start}
.grids figure{max-width:100%}
.grids figcaption{font-size:.78rem;line-height:1.25}
.grids svg{width:auto;max-width:100%}
.pair{display:flex;gap:.35rem;align-items:center;padding-right:.5rem;
border-right:1px solid var(--line)}
details{margin:.5rem 0}summary{cursor:pointer;color:var(--link)}
@media (max-width:34rem){body{font-size:15px}dl.facts{grid-template-columns:1fr;gap:0}
dl.facts dd{margin-bottom:.35rem}td.w{min-width:11rem}h2{margin-top:1.7rem}}
@media print{body{max-width:none;padding:0;font-size:10pt;-webkit-print-color-adjust:exact;
print-color-adjust:exact}nav,#tip{display:none}h2,h3,.lead,.legend,summary{break-after:avoid}.scroll{overflow:visible}
table{font-size:8pt}a{color:inherit;text-decoration:none}details>*{display:block}}
"""
"""Light and dark; one column on a phone; figures and cards are not broken over pages. c0 … c7 are
Okabe and Ito's colours, which colour-blind people tell apart, darker on white, lighter on black."""
