"""The second stage as a whole: stored outputs to `report.json` and `report.html`, with sounds and pictures in `listen`.

What was generated is only read. A report that is there is replaced; its scores are kept, see `results`.

Example:
    report = score_outputs("scores", Truths(corpus, codec), Scorers(codec_voice=CodecVoice(codec)))
    write_page("scores", report, Truths(corpus, codec))
    print("\\n".join(lines(report)))
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slmkit import plot
from slmkit.evaluate.intervals import Score
from slmkit.evaluate.listening import LISTEN, make_listening, worst
from slmkit.evaluate.metrics import TIMED, metric
from slmkit.evaluate.outputs import finished
from slmkit.evaluate.report_page import render
from slmkit.evaluate.results import ALL, REPORT, build, read_report, scores_of
from slmkit.evaluate.scoring import Scorers, score
from slmkit.evaluate.truth import Truths
from slmkit.files import atomic_write, write_json

PAGE, HISTOGRAMS = "report.html", f"{LISTEN}/histograms.png"


def score_outputs(
    directory: str | Path,
    truths: Truths,
    scorers: Scorers,
    *,
    measured_with: Mapping[str, str] | None = None,
    unseen: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """Score the outputs in a directory and write `report.json`; `unseen` are speakers the model was not trained on.

    Raises UserError as `outputs.finished` and `scoring.score` do, or when the disk refuses.
    """
    directory = Path(directory)
    outputs = finished(directory)
    rows = list(score(outputs, truths, scorers))
    before = read_report(directory) if (directory / REPORT).exists() else None
    report = build(outputs, rows, before, measured_with=dict(measured_with or {}), unseen=unseen)
    write_json(directory / REPORT, report, replace=True)
    return report


def write_page(directory: str | Path, report: dict[str, Any], truths: Truths) -> None:
    """Write `report.html` and what it shows. Raises UserError when the disk refuses, or a sound cannot be read."""
    directory = Path(directory)
    heard = make_listening(directory, worst(report["utterances"]), truths)
    spread = _spread(report)
    if spread:
        with atomic_write(directory / HISTOGRAMS, replace=True) as file:
            file.write(plot.histograms(spread))
    page = render(report, heard, histograms=HISTOGRAMS if spread else None)
    with atomic_write(directory / PAGE, replace=True) as file:
        file.write(page.encode())


def lines(report: dict[str, Any]) -> list[str]:
    """The scores of all utterances as text."""
    found = []
    for name, values in report["summary"][ALL]["metrics"].items():
        one = metric(name)
        left_out = f", {values['left_out']} left out" if values["left_out"] else ""
        shown = "not to be had"
        if values["mean"] is not None:
            shown = f"{one.shown(values['mean'])} {one.unit}".strip()
        if values["low"] is not None:
            shown += f" ({one.shown(values['low'])} to {one.shown(values['high'])})"
        found.append(f"  {one.title}: {shown}{left_out}")
    return found


def _spread(report: dict[str, Any]) -> dict[str, list[float]]:
    """Values of each metric, a value per utterance, by title."""
    columns = {}
    for name in report["summary"][ALL]["metrics"]:
        scores = scores_of(name, report["utterances"])
        values = [_value(score) for score in scores if score is not None and score[1]]
        if values and ":" not in name and name not in TIMED:  # names of streams are the codec's
            one = metric(name)
            scale = 100 if one.unit == "%" else 1
            columns[f"{one.title} {one.unit}".strip()] = [scale * value for value in values]
    return columns


def _value(score: Score) -> float:
    amount, weight = score
    return amount / weight
