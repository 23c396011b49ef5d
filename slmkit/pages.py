"""What the pages of this package have in common: style, head, and texts of strangers made harmless.

A page is one file of plain HTML without scripts, beside its WAV and PNG files; it needs no network. Texts are escaped,
isolated (so that right-to-left text does not reorder its surroundings) and shortened, and the head forbids scripts to
whatever might get in all the same.

Example:
    page = "\\n".join([head("scores"), f"<h1>{bidi(name, SHOWN_NAME)}</h1>", END])
"""

import html
from collections.abc import Sequence

SHOWN_TEXT = 600  # characters of a transcript
SHOWN_NAME = 120  # of a key, a speaker, a source
END = "</body>\n</html>\n"
STYLE = """
:root { color-scheme: light; --line: #d9dee5; --soft: #f5f7f9; --dim: #5c6773; --bad: #b3261e; --good: #1b6e3a;
        --bar: #4466aa; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; color: #1c2126; background: #fff;
       margin: 0 auto; max-width: 1240px; padding: 28px 24px 60px; }
h1 { font-size: 24px; margin: 0 0 14px; }
h2 { font-size: 18px; margin: 34px 0 8px; }
p.note { color: var(--dim); margin: 0 0 14px; max-width: 86ch; }
.verdict { border-radius: 6px; padding: 10px 14px; font-weight: 600; }
.verdict.good { background: #e6f4ea; color: var(--good); }
.verdict.bad { background: #fce8e6; color: var(--bad); }
dl { margin: 0; }
dl.facts { display: flex; flex-wrap: wrap; gap: 1px; margin-top: 14px; background: var(--line);
           border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
dl.facts div { flex: 1 1 auto; background: #fff; padding: 8px 14px; }
dt { color: var(--dim); font-size: 12px; }
dd { margin: 0; overflow-wrap: anywhere; }
dl.facts dd { font-size: 16px; font-variant-numeric: tabular-nums; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; vertical-align: top; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line);
         overflow-wrap: anywhere; }
th { color: var(--dim); font-size: 12px; font-weight: normal; }
td:first-child { white-space: nowrap; font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: 13px; }
article { border: 1px solid var(--line); border-radius: 6px; margin: 0 0 18px; padding: 16px;
          display: grid; grid-template-columns: minmax(0, 5fr) minmax(0, 6fr); gap: 10px 22px; }
article.doubtful { border-color: var(--bad); }
article h3 { grid-column: 1 / -1; font-size: 17px; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
article img { width: 100%; height: auto; display: block; }
.player { display: grid; grid-template-columns: 76px 1fr; align-items: center; margin-bottom: 8px; }
.player span { color: var(--dim); }
audio { width: 100%; height: 36px; }
.distance { margin: 6px 0 14px; }
.distance strong { font-variant-numeric: tabular-nums; }
.scale { position: relative; height: 10px; background: var(--soft); border: 1px solid var(--line); border-radius: 5px;
         margin-top: 4px; }
.scale i { position: absolute; inset: 0 auto 0 0; background: var(--bar); border-radius: 4px; }
.doubtful .scale i { background: var(--bad); }
.scale b { position: absolute; top: -4px; bottom: -4px; width: 2px; background: #1c2126; }
dl.about { display: grid; grid-template-columns: 76px 1fr; gap: 2px 0; font-size: 13px; }
dl.about dt { font-size: 13px; }
ul.checks { list-style: none; margin: 12px 0 0; padding: 0; display: flex; flex-wrap: wrap; gap: 6px; }
ul.checks li { background: var(--soft); border: 1px solid var(--line); border-radius: 4px; padding: 1px 8px;
               font-size: 13px; font-variant-numeric: tabular-nums; }
ul.checks li.odd { background: #fce8e6; border-color: var(--bad); color: var(--bad); }
.grid { overflow-x: auto; }
table.scores td, table.scores th { white-space: nowrap; font-variant-numeric: tabular-nums; }
table.scores td { font-family: inherit; font-size: 15px; }
table.scores td.note { white-space: normal; color: var(--dim); font-size: 13px; min-width: 30ch; }
table.scores small { color: var(--dim); }
table.stacked small { display: block; }
table.scores .best { color: var(--good); font-weight: 700; }
img.wide { max-width: 100%; height: auto; display: block; }
p.why { color: var(--bad); margin: 0 0 8px; }
@media (max-width: 860px) { article { grid-template-columns: minmax(0, 1fr); } }
"""


def head(title: str) -> str:
    """From the doctype to the opening of the body."""
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            # Images and sounds lie beside the page, which may be opened as a file, so they are not restricted.
            "<meta http-equiv=\"Content-Security-Policy\" content=\"script-src 'none'; object-src 'none'; "
            "frame-src 'none'; base-uri 'none'; form-action 'none'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escaped(title, SHOWN_NAME)}</title>\n<style>{STYLE}</style>\n</head>\n<body>",
        ]
    )


def facts_list(facts: Sequence[tuple[str, str]]) -> str:
    """Names and values side by side; the names are our own words."""
    items = (f"<div><dt>{name}</dt><dd>{bidi(value, SHOWN_NAME)}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{"".join(items)}</dl>'


def player(label: str, file: str) -> str:
    """Something to press and listen to; `file` is a name that we gave, relative to the page."""
    return f'<div class="player"><span>{label}</span><audio controls preload="metadata" src="{file}"></audio></div>'


def bidi(text: str, limit: int) -> str:
    """Text of a stranger as HTML, whatever its direction of writing."""
    return f"<bdi>{escaped(text, limit)}</bdi>"


def escaped(text: str, limit: int) -> str:
    """Text as HTML, at most `limit` characters of it."""
    return html.escape(text if len(text) <= limit else text[: limit - 1] + "…")
