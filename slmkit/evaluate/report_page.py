"""The page of an evaluation: a table of scores, how they are spread, and the worst utterances to listen to.

Example:
    html = render(report, heard, histograms="listen/histograms.png")
"""

from collections.abc import Sequence
from typing import Any

from slmkit.evaluate.listening import Heard
from slmkit.evaluate.metrics import metric
from slmkit.evaluate.results import ALL
from slmkit.pages import END, SHOWN_NAME, SHOWN_TEXT, bidi, facts_list, head, player

TASKS = {"tts": "reading sentences", "qa": "answering questions"}
TABLE_NOTE = (
    "Means with the interval that holds 95 % of the means of utterances drawn again. Every utterance counts; where a "
    "metric cannot be computed of some, they are counted as left out. Rates of words are over all words together."
)
NO_VALUE = "&ndash;"
ABOUT = ("key", "voice", "voice_key", "speaker", "question", "true_answers", "answer", "heard")


def render(report: dict[str, Any], heard: Sequence[Heard], *, histograms: str | None) -> str:
    """The page of a report; file names are relative to it."""
    name = report["names"].get("model") or "model"
    return "\n".join(
        [
            head(f"{name} evaluated"),
            f"<h1>{bidi(name, SHOWN_NAME)}</h1>",
            facts_list(_facts(report)),
            f'<h2>Scores</h2>\n<p class="note">{TABLE_NOTE}</p>',
            _table(report["summary"]),
            f'<h2>How they are spread</h2>\n<img class="wide" src="{histograms}" alt="histograms">'
            if histograms
            else "",
            "<h2>The worst by each metric</h2>" if heard and heard[0].worst_by else "<h2>Samples</h2>",
            *(_article(each) for each in heard),
            END,
        ]
    )


def _facts(report: dict[str, Any]) -> list[tuple[str, str]]:
    settings, rows = report["settings"], report["utterances"]
    codec = settings["codec"]
    seconds = sum(row["frames"] for row in rows) * codec["hop_samples"] / codec["sample_rate"]
    facts = [
        ("task", TASKS[settings["task"]]),
        ("corpus", report["names"].get("corpus", "")),
        ("codec", f"{codec['name']} {codec['weights_sha256'][:12]}"),
        ("utterances", f"{len(rows):,}"),
        ("speech", f"{seconds:,.1f} s"),
        ("seed", str(settings["seed"])),
        ("temperature", f"{settings['sampling']['temperature']:g}"),
    ]
    facts += [(name, str(settings[name])) for name in ("slots", "device") if name in settings]
    return facts + [(f"measured with {name}", path) for name, path in report["measured_with"].items()]


def _table(summary: dict[str, Any]) -> str:
    heads = "".join(f"<th>{bidi(name, SHOWN_NAME)}, {group['utterances']}</th>" for name, group in summary.items())
    rows = [_row(name, summary) for name in summary[ALL]["metrics"]]
    return (
        f'<div class="grid"><table class="scores">\n<tr><th>metric</th>{heads}<th></th></tr>\n'
        + "\n".join(rows)
        + "\n</table></div>"
    )


def _row(name: str, summary: dict[str, Any]) -> str:
    shown = metric(name)
    cells = "".join(f"<td>{value_cell(name, group['metrics'].get(name))}</td>" for group in summary.values())
    title = bidi(f"{shown.title} {shown.unit}".strip(), SHOWN_NAME)
    return f'<tr><td>{title}</td>{cells}<td class="note">{shown.note}</td></tr>'


def value_cell(name: str, found: dict[str, Any] | None) -> str:
    """A mean with its interval and what was left out, as HTML."""
    if found is None:
        return ""
    left_out = f" <small>{found['left_out']} left out</small>" if found["left_out"] else ""
    if found["mean"] is None:
        return f"{NO_VALUE}{left_out}"
    shown = metric(name).shown
    low_high = "" if found["low"] is None else f" <small>{shown(found['low'])} to {shown(found['high'])}</small>"
    return f"{shown(found['mean'])}{low_high}{left_out}"


def _article(heard: Heard) -> str:
    row = heard.row
    about = [(name.replace("_", " "), row[name]) for name in ABOUT if row.get(name)]
    known = "".join(f"<dt>{name}</dt><dd>{bidi(_words(value), SHOWN_TEXT)}</dd>" for name, value in about)
    picture = f'<img src="{heard.picture}" alt="log-mel levels">' if heard.picture else ""
    return "\n".join(
        [
            f'<article class="{"sound" if row["reason"] == "end" and row["frames"] else "doubtful"}">',
            f'<h3 dir="auto">{bidi(row["text"], SHOWN_TEXT)}</h3>',
            "<div>",
            f'<p class="note">among the worst by {", ".join(heard.worst_by)}</p>' if heard.worst_by else "",
            _failure(row),
            *(player(label, file) for label, file in heard.sounds),
            f'<dl class="about">{known}</dl>',
            _scores(row["scores"]),
            "</div>",
            f"<div>{picture}</div>",
            "</article>",
        ]
    )


def _words(value: Any) -> str:
    return " / ".join(value) if isinstance(value, list) else str(value)


def _failure(row: dict[str, Any]) -> str:
    words = {
        "end": "" if row["frames"] else "The model ended its answer without speech.",
        "limit": f"Cut off at the limit of {str(row['limit']).replace('_', ' ')}.",
        "refused": f"Not asked of the model: {row['why']}.",
    }[row["reason"]]
    return f'<p class="why">{bidi(words, SHOWN_TEXT)}</p>' if words else ""


def _scores(scores: dict[str, Any]) -> str:
    items = []
    for name, score in scores.items():
        if score is None or score[1] == 0:
            items.append(f"<li>{bidi(metric(name).title, SHOWN_NAME)} {NO_VALUE}</li>")
        else:
            value = metric(name).shown(score[0] / score[1])
            items.append(f"<li>{bidi(metric(name).title, SHOWN_NAME)} {value}</li>")
    return f'<ul class="checks">{"".join(items)}</ul>'
