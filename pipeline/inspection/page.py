"""The page: the frame of a report as one HTML file that loads nothing and runs nothing.

    page(title, lead, [Section("scores", "Scores", html)])

Everything shown goes through `text`. A Content-Security-Policy forbids whatever is not in the file:
even if something slipped through, it could neither run nor be sent anywhere.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from string import Template


@dataclass(frozen=True)
class Section:
    """A part of the page: its anchor, its title, its HTML. Without content it is left out."""

    name: str
    title: str
    content: str
    note: str = ""


def text(value: object) -> str:
    """Any text as HTML that shows it."""
    shown = "".join(
        c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in str(value)
    )
    return html.escape(shown)


def table(header: Iterable[str], rows: Iterable[Iterable[str]], kind: str = "") -> str:
    """A table of HTML cells; a header that begins with `#` is a column of numbers."""
    names = list(header)
    classes = [' class="n"' if name.startswith("#") else "" for name in names]
    head = "".join(f"<th{c}>{text(name.lstrip('#'))}</th>" for c, name in zip(classes, names))
    body = "".join(
        f"<tr>{''.join(f'<td{c}>{cell}</td>' for c, cell in zip(classes, row))}</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def tiles(facts: Iterable[tuple[str, str, str]]) -> str:
    """Large numbers: (number, what it is, a detail)."""
    shown = (
        f'<div class="tile"><b>{text(number)}</b><span>{text(name)}</span>'
        f"<small>{text(detail)}</small></div>"
        for number, name, detail in facts
    )
    return f'<div class="tiles">{"".join(shown)}</div>'


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole file; `lead` is HTML below the title."""
    shown = [section for section in sections if section.content]
    links = "".join(f'<a href="#{each.name}">{text(each.name.capitalize())}</a>' for each in shown)
    body = "".join(
        f'<section id="{each.name}"><h2>{text(each.title)}</h2>'
        + (f'<p class="note">{text(each.note)}</p>' if each.note else "")
        + f"{each.content}</section>"
        for each in shown
    )
    return Template(_PAGE).substitute(title=text(title), lead=lead, links=links, body=body)


_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none';
 form-action 'none'">
<meta name="referrer" content="no-referrer">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ink: #20242b; --soft: #6a7180; --line: #e6e3dc;
  --page: #faf9f6; --card: #fff; --kept: #24786c; --dropped: #d39a34; --error: #bd4136;
  --wash: #bd41360f; --track: #eeece6; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7e8ea; --soft: #9aa1ad; --line: #2c3138;
  --page: #131518; --card: #1a1d21; --kept: #4fb0a2; --dropped: #d9a94f; --error: #e2776d;
  --wash: #e2776d14; --track: #262a30; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 3.5rem; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 ui-sans-serif, system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif;
  font-variant-numeric: tabular-nums; overflow-wrap: break-word; }
header, main { max-width: 70rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 3rem; }
h1 { margin: 0; font: 600 2.3rem/1.15 ui-serif, Charter, Georgia, "Liberation Serif", serif;
  letter-spacing: -.01em; }
h2 { margin: 0 0 .2rem;
  font: 600 1.35rem/1.3 ui-serif, Charter, Georgia, "Liberation Serif", serif; }
h3 { margin: 1.6rem 0 .5rem; font-size: 1rem; font-weight: 600; }
h3 small { font-weight: 400; color: var(--soft); font-size: .87rem; margin-left: .4rem; }
p { margin: .3rem 0; max-width: 46rem; }
.lead { font-size: 1.1rem; color: var(--ink); margin-top: .7rem; }
.note, .soft, small { color: var(--soft); }
code, pre, .mono { font: .86em/1.5 ui-monospace, "SF Mono", Menlo, "Liberation Mono", monospace; }
nav { position: sticky; top: 0; z-index: 1; margin-top: 1.8rem; background: var(--page);
  border-bottom: 1px solid var(--line); }
nav div { max-width: 70rem; margin: 0 auto; padding: 0 1.5rem; display: flex; gap: 1.4rem;
  overflow-x: auto; scrollbar-width: none; }
nav a { padding: .7rem 0; color: var(--soft); text-decoration: none; white-space: nowrap;
  font-size: .9rem; }
nav a:hover, nav a:focus { color: var(--ink); }
section { padding: 2.4rem 0 .4rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr));
  gap: 1px; margin-top: 1.8rem; background: var(--line); border: 1px solid var(--line);
  border-radius: 10px; overflow: hidden; }
.tile { padding: .9rem 1rem; background: var(--card); }
.tile b { display: block; font-size: 1.5rem; font-weight: 600; letter-spacing: -.01em; }
.tile span, .tile small { display: block; font-size: .84rem; }
.grid { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr));
  gap: 1.6rem 2rem; margin-top: 1rem; align-items: start; }
figure { margin: 0; }
figcaption { margin-bottom: .3rem; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--soft); font: 10.5px ui-sans-serif, system-ui, sans-serif; }
svg .label { fill: var(--error); }
svg.spark { height: 1.5rem; min-width: 6rem; }
.kept { fill: var(--kept); background: var(--kept); }
.dropped { fill: var(--dropped); background: var(--dropped); }
.error { fill: var(--error); background: var(--error); }
.axis { stroke: var(--line); } .cut { fill: var(--wash); }
.bound { stroke: var(--error); stroke-dasharray: 3 2; } .area { fill: var(--kept); opacity: .85; }
.bar { display: flex; height: .6rem; min-width: 6rem; background: var(--track);
  border-radius: 3px; overflow: hidden; }
.bar i { display: block; height: 100%; min-width: 1px; }
.key { display: inline-block; width: .7rem; height: .7rem; border-radius: 2px;
  margin: 0 .3rem 0 .8rem; }
.key:first-child { margin-left: 0; }
.scroll { overflow-x: auto; margin-top: .8rem; }
table { width: 100%; border-collapse: collapse; font-size: .93rem; }
th { color: var(--soft); font-weight: 500; text-align: left; font-size: .84rem;
  white-space: nowrap; vertical-align: bottom; }
th, td { padding: .4rem 1.1rem .4rem 0; border-bottom: 1px solid var(--line); }
td { vertical-align: middle; }
th:last-child, td:last-child { padding-right: 0; }
.n { text-align: right; white-space: nowrap; }
.wide td:last-child { width: 32%; }
.captions td:first-child { min-width: 14rem; }
td small { display: block; }
.shelf { display: flex; flex-wrap: wrap; gap: 1.2rem; margin-top: .6rem; }
.shelf figure { min-width: 10rem; max-width: 100%; }
.shelf figcaption { margin: .3rem 0 0; font-size: .82rem; line-height: 1.35; color: var(--soft); }
.shelf figcaption b { color: var(--ink); font-weight: 500; }
.shelf figcaption b { display: block; }
.strip { display: flex; max-width: 100%; gap: 2px; border-radius: 6px; overflow: hidden; }
.strip img { flex: 1; min-width: 0; width: 100%; height: auto; }
.missing { display: grid; place-items: center; flex: 1; height: 5.25rem; font-size: .84rem;
  border-radius: 6px; background: var(--track); color: var(--soft); }
details { margin-top: .8rem; }
summary { cursor: pointer; color: var(--soft); }
pre { margin: .6rem 0 0; padding: 1rem 1.2rem; background: var(--card); white-space: pre-wrap;
  border: 1px solid var(--line); border-radius: 8px; overflow-x: auto; }
footer { max-width: 70rem; margin: 3rem auto 0; padding: 1rem 1.5rem 3rem; color: var(--soft);
  font-size: .84rem; }
@media (max-width: 40rem) {
  header { padding-top: 1.6rem; } h1 { font-size: 1.7rem; }
  .funnel thead { display: none; }
  .funnel tr { display: grid; grid-template-columns: 1fr 4rem 5.5rem; padding: .6rem 0;
    border-bottom: 1px solid var(--line); }
  .funnel td { border: 0; padding: .1rem 0; }
  .funnel td:nth-child(n+4) { display: none; }
  .funnel td.picture { display: block; width: auto; grid-column: 1 / -1; padding-top: .35rem; }
}
@media print { nav { display: none; } section { break-inside: avoid; } }
</style>
</head>
<body>
<header>
<h1>$title</h1>
$lead
</header>
<nav><div>$links</div></nav>
<main>
$body
</main>
<footer>Made by <code>tessera</code>. One file: nothing in it loads or runs.</footer>
</body>
</html>
"""
