"""The page of a verification: what is wrong, and utterances to listen to and look at.

One file of plain HTML without scripts, beside its WAV and PNG files; it needs no network. Every text of the corpus is
escaped, isolated (so that right-to-left text does not reorder its surroundings) and shortened, and the page forbids
scripts to whatever might get in all the same.

Example:
    html = render(title="libritts", facts=[("shards", "12")], problems=[], copies=copies)
"""

import html
from collections.abc import Sequence

from slmkit.evaluate.copies import DECODED, PICTURE, SOURCE, Copy
from slmkit.evaluate.integrity import Problem
from slmkit.tokenization.outliers import LIMITS

SHOWN_TEXT = 600  # characters of a transcript
SHOWN_NAME = 120  # of a key, a speaker, a source
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
@media (max-width: 860px) { article { grid-template-columns: minmax(0, 1fr); } }
"""
SCALE_NOTE = (
    "Log-mel distance between the source and what the codes decode to, in dB: 0 is the same, 5 to 8 an intelligible "
    "copy, 12 to 20 other words. The black mark is the distance from the same source to the decoded speech of another "
    "utterance, which is what a wrong pairing would give. The least like their sources come first."
)


def render(*, title: str, facts: Sequence[tuple[str, str]], problems: Sequence[Problem], copies: Sequence[Copy]) -> str:
    """The page. `facts` are shown as names and values."""
    longest_db = max((db for copy in copies for db in (copy.distance_db, copy.other_db) if db is not None), default=1.0)
    in_order = sorted(copies, key=lambda copy: (not copy.is_doubtful, -(copy.distance_db or 0.0)))
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            # Images and sounds lie beside the page, which may be opened as a file, so they are not restricted.
            "<meta http-equiv=\"Content-Security-Policy\" content=\"script-src 'none'; object-src 'none'; "
            "frame-src 'none'; base-uri 'none'; form-action 'none'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_escaped(title, SHOWN_NAME)} verified</title>\n<style>{STYLE}</style>\n</head>\n<body>",
            f"<h1>Corpus {_text(title, SHOWN_NAME)}</h1>",
            _verdict(problems),
            _facts(facts),
            _problem_table(problems),
            f'<h2>Decoded samples</h2>\n<p class="note">{SCALE_NOTE}</p>' if copies else "",
            *(_article(copy, longest_db) for copy in in_order),
            "</body>\n</html>\n",
        ]
    )


def _verdict(problems: Sequence[Problem]) -> str:
    if not problems:
        return '<p class="verdict good">Every shard is whole and as it was planned.</p>'
    num_files = len({problem.where for problem in problems})
    words = "1 file is" if num_files == 1 else f"{num_files} files are"
    return f'<p class="verdict bad">{words} damaged or not as planned.</p>'


def _problem_table(problems: Sequence[Problem]) -> str:
    if not problems:
        return ""
    rows = "\n".join(
        f"<tr><td>{_text(problem.where, SHOWN_NAME)}</td><td>{_text(problem.what, SHOWN_TEXT)}</td></tr>"
        for problem in problems
    )
    return f"<h2>What is wrong</h2>\n<table>\n<tr><th>file</th><th>finding</th></tr>\n{rows}\n</table>"


def _article(copy: Copy, longest_db: float) -> str:
    about = [(name, getattr(copy, name)) for name in ("key", "shard", "speaker", "language", "source")]
    about += [("length", f"{copy.seconds:.2f} s")]
    known = "".join(f"<dt>{name}</dt><dd>{_text(value, SHOWN_NAME)}</dd>" for name, value in about if value)
    has_source = copy.distance_db is not None
    players = [("source", SOURCE)] * has_source + [("decoded", DECODED)]
    return "\n".join(
        [
            f'<article class="{"doubtful" if copy.is_doubtful else "sound"}">',
            f'<h3 dir="auto">{_text(copy.text, SHOWN_TEXT)}</h3>',
            "<div>",
            *(
                f'<div class="player"><span>{label}</span>'
                f'<audio controls preload="metadata" src="{file.format(copy.name)}"></audio></div>'
                for label, file in players
            ),
            _distance(copy, longest_db),
            f'<dl class="about">{known}</dl>',
            _checks(copy.checks),
            "</div>",
            f'<div><img src="{PICTURE.format(copy.name)}" alt="log-mel levels of source and decoded speech"></div>',
            "</article>",
        ]
    )


def _distance(copy: Copy, longest_db: float) -> str:
    if copy.distance_db is None:
        return '<p class="distance">The source audio is not to be had: nothing to compare with.</p>'
    share = 100 * copy.distance_db / longest_db if longest_db else 0.0
    words, mark = f"<strong>{copy.distance_db:.1f} dB</strong> from its source", ""
    if copy.other_db is not None:
        words += f", {copy.other_db:.1f} dB to another utterance"
        mark = f'<b style="left: calc({100 * copy.other_db / longest_db:.1f}% - 2px)"></b>' if longest_db else ""
    if copy.is_doubtful:
        words += ": no more like its own source than another's"
    return f'<div class="distance">{words}<div class="scale"><i style="width: {share:.1f}%"></i>{mark}</div></div>'


def _checks(checks: dict[str, float]) -> str:
    """The checks, those beyond the limits of any corpus marked."""
    unlimited = (float("-inf"), float("inf"))
    items = []
    for name, value in checks.items():
        low, high = LIMITS.get(name, unlimited)
        kind = "sound" if low <= value <= high else "odd"
        items.append(f'<li class="{kind}">{_text(name, SHOWN_NAME)} {value:g}</li>')
    return f'<ul class="checks">{"".join(items)}</ul>' if items else ""


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    items = (f"<div><dt>{name}</dt><dd>{_text(value, SHOWN_NAME)}</dd></div>" for name, value in facts)
    return f'<dl class="facts">{"".join(items)}</dl>'


def _text(text: str, limit: int) -> str:
    """Text of a stranger as HTML, whatever its direction of writing."""
    return f"<bdi>{_escaped(text, limit)}</bdi>"


def _escaped(text: str, limit: int) -> str:
    return html.escape(text if len(text) <= limit else text[: limit - 1] + "…")
