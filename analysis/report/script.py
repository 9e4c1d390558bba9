"""The one script of the report: it shows values under the pointer, or where a phone is touched.

Without it (or where scripts are off) nothing is missing but these values: tables hold the numbers.
A content security policy with the script's hash lets no other script run, and nothing be loaded.
"""

from __future__ import annotations

import base64
import hashlib

SCRIPT = """
(function () {
  "use strict";
  var tip = document.createElement("div"), cross = null;
  tip.id = "tip"; tip.hidden = true; document.body.appendChild(tip);
  function hide() { tip.hidden = true; if (cross) { cross.remove(); cross = null; } }
  function place(text, event) {
    tip.textContent = text; tip.hidden = false;
    var room = document.documentElement.clientWidth, box = tip.getBoundingClientRect();
    var left = event.clientX + 14, top = event.clientY + 14;
    if (left + box.width > room - 4) left = Math.max(4, event.clientX - box.width - 14);
    var low = window.innerHeight - 4;
    if (top + box.height > low) top = Math.max(4, event.clientY - box.height - 14);
    tip.style.left = left + "px"; tip.style.top = top + "px";
  }
  function scale(text) {
    var v = text.split(",").map(Number), log = v[4] === 1;
    return function (at) {
      var share = (at - v[2]) / (v[3] - v[2]), low = v[0], high = v[1];
      if (!log) return low + share * (high - low);
      return Math.pow(10, Math.log10(low) + share * (Math.log10(high) - Math.log10(low)));
    };
  }
  function show(value, kind) {
    if (kind === "p") return (100 * value).toFixed(1) + " %";
    var size = Math.abs(value);
    if (size >= 1e6) return (value / 1e6).toPrecision(3) + " M";
    if (size >= 1e4) return (value / 1e3).toPrecision(3) + " k";
    return size >= 1000 ? value.toFixed(0) : String(Number(value.toPrecision(3)));
  }
  function points(line) {
    if (!line.known) line.known = line.getAttribute("points").split(" ").map(function (pair) {
      return pair.split(",").map(Number);
    });
    return line.known;
  }
  function read(svg, event) {
    var box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal;
    var x = (event.clientX - box.left) * view.width / box.width, best = {}, order = [], at = null;
    svg.querySelectorAll("polyline[data-n]").forEach(function (line) {
      var name = line.getAttribute("data-n");
      points(line).forEach(function (point) {
        var far = Math.abs(point[0] - x);
        if (far > 12 || (best[name] && best[name].far <= far)) return;
        if (!best[name]) order.push(name);
        best[name] = { far: far, x: point[0], y: point[1] };
      });
    });
    if (!order.length) { hide(); return; }
    order.forEach(function (n) { if (at === null || best[n].far < best[at].far) at = n; });
    var across = scale(svg.getAttribute("data-x")), up = scale(svg.getAttribute("data-y"));
    var kind = svg.getAttribute("data-f");
    var where = show(across(best[at].x), svg.getAttribute("data-xf"));
    var lines = [svg.getAttribute("data-xn") + " " + where];
    order.forEach(function (name) {
      lines.push((name ? name + ": " : "") + show(up(best[name].y), kind));
    });
    if (!cross || cross.ownerSVGElement !== svg) {
      hide();
      cross = document.createElementNS(svg.namespaceURI, "line");
      cross.setAttribute("class", "cross"); svg.appendChild(cross);
    }
    var ends = svg.getAttribute("data-y").split(",");
    [["x1", best[at].x], ["x2", best[at].x], ["y1", ends[2]], ["y2", ends[3]]].forEach(
      function (pair) { cross.setAttribute(pair[0], pair[1]); });
    place(lines.join("\\n"), event);
  }
  var names = "black blue red green yellow grey magenta orange azure maroon".split(" ");
  function named(cell) { return cell === "." ? "no colour" : cell + " " + names[Number(cell)]; }
  function cell(svg, event) {
    var box = svg.getBoundingClientRect(), rows = svg.getAttribute("data-g").split("|");
    var r = Math.floor((event.clientY - box.top) / box.height * rows.length);
    var c = Math.floor((event.clientX - box.left) / box.width * rows[0].length);
    var value = (rows[r] || "")[c], puzzle = svg.closest("[data-truth]");
    if (value === undefined) return hide();
    var text = "row " + (r + 1) + ", column " + (c + 1) + ": " + named(value);
    var truth = puzzle.getAttribute("data-truth").split("|")[r];
    if (svg.hasAttribute("data-w") && truth && truth[c] !== value) {
      text += " (right: " + named(truth[c]) + ")";
    }
    if (cross) hide();
    place(text, event);
  }
  function look(event) {
    var target = event.target;
    if (!target || !target.closest) return hide();
    var told = target.closest("[data-tip]"), svg = target.closest("svg[data-x]");
    var grid = target.closest("svg[data-g]");
    if (told) { if (cross) hide(); place(told.getAttribute("data-tip"), event); }
    else if (svg) read(svg, event);
    else if (grid) cell(grid, event);
    else hide();
  }
  document.addEventListener("pointermove", look);
  document.addEventListener("pointerdown", look);
  document.addEventListener("scroll", hide, true);
})();
"""


def policy() -> str:
    """Content security policy of the page: nothing is loaded, no other script runs."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
