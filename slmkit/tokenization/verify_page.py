"""The page of a verification: what is wrong, and utterances to listen to and look at.

One file of plain HTML without scripts, beside its WAV and PNG files; it needs no network. Every text of the corpus is
escaped, isolated (so that right-to-left text does not reorder its surroundings) and shortened, and the page forbids
scripts to whatever might get in all the same.

Example:
    html = render(title="libritts", facts=[("shards", "12")], problems=[], copies=copies)
"""

from collections.abc import Sequence

from slmkit.pages import END, SHOWN_NAME, SHOWN_TEXT, bidi, facts_list, head, player
from slmkit.tokenization.copies import DECODED, PICTURE, SOURCE, Copy
from slmkit.tokenization.integrity import Problem
from slmkit.tokenization.outliers import LIMITS

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
            head(f"{title} verified"),
            f"<h1>Corpus {bidi(title, SHOWN_NAME)}</h1>",
            _verdict(problems),
            facts_list(facts),
            _problem_table(problems),
            f'<h2>Decoded samples</h2>\n<p class="note">{SCALE_NOTE}</p>' if copies else "",
            *(_article(copy, longest_db) for copy in in_order),
            END,
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
        f"<tr><td>{bidi(problem.where, SHOWN_NAME)}</td><td>{bidi(problem.what, SHOWN_TEXT)}</td></tr>"
        for problem in problems
    )
    return f"<h2>What is wrong</h2>\n<table>\n<tr><th>file</th><th>finding</th></tr>\n{rows}\n</table>"


def _article(copy: Copy, longest_db: float) -> str:
    about = [(name, getattr(copy, name)) for name in ("key", "shard", "speaker", "language", "source")]
    about += [("length", f"{copy.seconds:.2f} s")]
    known = "".join(f"<dt>{name}</dt><dd>{bidi(value, SHOWN_NAME)}</dd>" for name, value in about if value)
    has_source = copy.distance_db is not None
    players = [("source", SOURCE)] * has_source + [("decoded", DECODED)]
    return "\n".join(
        [
            f'<article class="{"doubtful" if copy.is_doubtful else "sound"}">',
            f'<h3 dir="auto">{bidi(copy.text, SHOWN_TEXT)}</h3>',
            "<div>",
            *(player(label, file.format(copy.name)) for label, file in players),
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
        items.append(f'<li class="{kind}">{bidi(name, SHOWN_NAME)} {value:g}</li>')
    return f'<ul class="checks">{"".join(items)}</ul>' if items else ""
