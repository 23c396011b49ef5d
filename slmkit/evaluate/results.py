"""The numbers of an evaluation: scores of utterances to means with intervals, as they stand in `report.json`.

A mean is the sum of the amounts divided by the sum of the weights (see `metrics`): a plain mean where every weight is
1, the error rate of all words where the weights are words. Its interval is the 95 % percentile bootstrap interval over
utterances (Efron and Tibshirani 1993), from 1 000 resamples with a fixed seed.

Kept free of torch, since comparing reports needs none.

Invariant: equal scores give equal numbers.

Example:
    bootstrap([(3, 12), (0, 8)])                    # Interval(mean=0.15, low=0.0, high=0.25)
    read_report("scores")["summary"]["all"]["metrics"]["wer"]      # {"mean": 0.031, "low": 0.02, "high": 0.05, ...}
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from annotated_types import Len
from pydantic import BaseModel, ConfigDict, ValidationError

from slmkit.errors import UserError
from slmkit.evaluate.metrics import Metric, Score
from slmkit.files import read_json
from slmkit.texts import excerpt

REPORT, REPORT_PAGE = "report.json", "report.html"
ALL, SEEN_VOICES, UNSEEN_VOICES = "all", "seen voices", "unseen voices"
HELD_OUT, TRAINED_ON = "held out", "trained on"
RESAMPLES, CONFIDENCE = 1000, 0.95
BATCH_VALUES = 2**20  # drawn at a time, so that memory is bounded
NOT_AVAILABLE = "n/a"
COPY = "copy synthesis"  # in place of a model
SEVERAL_MACHINES = "several machines"  # in place of one, whose speeds are then no one's
TASK_TITLES = {"tts": "reading sentences", "qa": "answering questions"}
SHOWN_ERROR = 200  # characters
HEADLINES = (  # name, metrics any of which it is, which side is better, and why it may be missing
    ("WER", ("wer",), "lower", "no recognizer was given: --asr"),
    ("CER", ("cer",), "lower", "no recognizer was given: --asr"),
    ("similarity", ("wavlm_similarity", "codec_similarity"), "higher", "no model of voices was given: --wavlm"),
    (
        "naturalness",
        ("utmos", "distillmos"),
        "higher",
        "no model of it was given: --mos distillmos, or --utmos",
    ),
    ("success", ("success",), "higher", "it was not scored"),
)
TABLE_HEAD = f"  {'':26}{'mean':>8}   95 % bootstrap interval"

SIDES = ((HELD_OUT, False), (TRAINED_ON, True))

Json = dict[str, Any]


class Interval(NamedTuple):
    """The mean of all utterances, and between which values 95 % of the resampled means lie."""

    mean: float
    low: float
    high: float


class Cell(NamedTuple):
    """A mean as it is shown."""

    mean: str
    interval: str  # "" where there is none
    left_out: int  # utterances of which the metric could not be computed


def bootstrap(scores: Sequence[Score]) -> Interval | None:
    """The mean of all scores with its interval; None where the weights sum to nothing."""
    table = np.array(scores, dtype=np.float64).reshape(-1, 2)
    return _interval(_ratio, table[:, 0], table[:, 1])


def difference(first: Sequence[Score], second: Sequence[Score]) -> Interval | None:
    """How much more the second is than the first; utterance i of both is drawn together, as they are of one sentence.

    Raises ValueError when the two are not equally many.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} scores against {len(second)}")
    a, b = (np.array(scores, dtype=np.float64).reshape(-1, 2) for scores in (first, second))

    def more(*columns: npt.NDArray[np.float64], axis: int = -1) -> Any:
        return _ratio(*columns[2:], axis=axis) - _ratio(*columns[:2], axis=axis)

    return _interval(more, a[:, 0], a[:, 1], b[:, 0], b[:, 1])


def _ratio(amounts: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], *, axis: int = -1) -> Any:
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = amounts.sum(axis=axis) / weights.sum(axis=axis)
    return np.where(np.isfinite(ratio), ratio, np.nan)


def _interval(statistic: Callable[..., Any], *columns: npt.NDArray[np.float64]) -> Interval | None:
    mean, count = float(statistic(*columns)), len(columns[0])
    if np.isnan(mean):
        return None
    if count == 1:  # which scipy refuses
        return Interval(mean, mean, mean)
    from scipy import stats  # takes a second to import

    found = stats.bootstrap(
        columns,
        # A resample without weight, such as no words at all, says nothing: it takes the mean.
        lambda *drawn, axis: np.nan_to_num(statistic(*drawn, axis=axis), nan=mean),
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_VALUES // count),
        vectorized=True,
        paired=True,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))


def summarize(rows: Sequence[Json], metrics: Mapping[str, Metric]) -> Json:
    """How many rows there are and, of each metric that they have, its mean with an interval, how many rows count and
    how many are left out. Metrics stand in the order of `metrics`."""
    found = {}
    for name, metric in metrics.items():
        scores = [row["scores"][name] for row in rows if name in row["scores"]]
        counted = [(score[0], score[1]) for score in scores if score is not None]
        if scores:
            values = dict.fromkeys(Interval._fields) | (interval._asdict() if (interval := bootstrap(counted)) else {})
            if metric.is_timed:
                values |= {"low": None, "high": None}
            found[name] = {**values, "counted": len(counted), "left_out": len(scores) - len(counted)}
    return {"utterances": len(rows), "metrics": found}


def groups(rows: Sequence[Json], unseen: frozenset[str]) -> dict[str, list[Json]]:
    """Rows by name of the group, which overlap: all; those that the model was not and was trained on, where there are
    both; each voice, where there are several; and voices that the model has not and has seen, where there are both or
    the `unseen` speakers are given."""
    found = {ALL: list(rows)}
    by_training = {name: [row for row in rows if row.get("trained_on") is is_trained] for name, is_trained in SIDES}
    if all(by_training.values()):
        found |= by_training
    voices = list(dict.fromkeys(row["voice"] for row in rows))
    if len(voices) > 1:
        found |= {f"voice {voice}": [row for row in rows if row["voice"] == voice] for voice in voices}
    heard = {SEEN_VOICES: True, UNSEEN_VOICES: False}
    by_hearing = {name: [r for r in rows if r.get("trained_voice") is is_seen] for name, is_seen in heard.items()}
    if not unseen and all(by_hearing.values()):
        found |= by_hearing
    if unseen:
        found[SEEN_VOICES] = [row for row in rows if row["speaker"] not in unseen]
        found[UNSEEN_VOICES] = [row for row in rows if row["speaker"] in unseen]
    return found


def read_report(directory: str | Path) -> Json:
    """The report in a directory. Raises UserError when there is none, or it is something else."""
    path = Path(directory) / REPORT
    if not os.path.isfile(path):
        raise UserError(f"{directory} holds no scores", expected=REPORT, next_step="score the outputs first")
    report: Json = read_json(path)
    try:
        _ReportFile.model_validate_json(json.dumps(report))
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        raise UserError(
            f"{path} is not the report of an evaluation",
            got=excerpt(f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}", SHOWN_ERROR),
            next_step="remove it and score the outputs",
        ) from error
    return report


class _Part(BaseModel):
    """A part of a report: what scoring and comparing read of it, and whatever else there is."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _CodecOf(_Part):
    name: str
    weights_sha256: str


class _SettingsOf(_Part):
    task: Literal["tts", "qa"]
    codec: _CodecOf


class _Utterance(_Part):
    place: int = -1
    frames: int = 0
    trained_on: bool | None = None
    key: str
    voice: str
    voice_key: str
    text: str
    question: str
    heard: str = ""
    scores: dict[str, Annotated[list[float], Len(2, 2)] | None]


class Headline(NamedTuple):
    """One of the few numbers that an evaluation is about."""

    name: str
    better: str  # "higher" or "lower"
    mean: str  # as it is shown; "" where it is not computed
    interval: str
    left_out: int
    why: str  # it is not computed; "" where it is

    def line(self) -> str:
        """As a line of text."""
        if self.why:
            return f"  {self.name[:26]:26}not computed, because {self.why}"
        left_out = f", {self.left_out} left out" if self.left_out else ""
        return f"  {self.name[:26]:26}{self.mean:>8}   {self.interval:22}{self.better} is better{left_out}"


def headline(report: Json) -> list[Headline]:
    """The few numbers that an evaluation is about: error rates, similarity, naturalness, success."""
    summary, metrics, found = report["summary"][ALL]["metrics"], metrics_of(report), []
    for name, choices, better, why in HEADLINES:
        shown = [choice for choice in choices if choice in summary]
        for choice in shown:
            metric, shown_cell = metrics[choice], cell(metrics[choice], summary[choice])
            assert shown_cell is not None, "it is in the summary"
            label = metric.title if name == metric.label else f"{name}, {metric.title}"
            is_known = shown_cell.mean != NOT_AVAILABLE
            found.append(
                Headline(
                    label,
                    better,
                    shown_cell.mean if is_known else "",
                    shown_cell.interval,
                    shown_cell.left_out,
                    "" if is_known else "no utterance has speech to measure it of",
                )
            )
        if not shown:
            notes = [note for note in report.get("notes", []) if name == "similarity"]
            found.append(Headline(name, better, "", "", 0, notes[0] if notes else why))
    return found


def training_lines(report: Json) -> list[str]:
    """What the model was trained on of the utterances, as sentences for people."""
    if report["settings"].get("model") == COPY:
        return ["no model spoke: these are the codec's copies"]
    rows, noted = report["utterances"], report.get("trained_on", {"is_known": False})
    if not noted["is_known"]:
        return ["not known: the model does not say what it was trained on, so it may know these utterances by heart"]
    count = sum(row.get("trained_on") is True for row in rows)
    unknown = sum(row.get("trained_on") is None for row in rows)
    share = count if 0 < count < len(rows) else "all" if count else "none"
    lines = [f"utterances that the model was trained on: {share} of {len(rows)}"]
    if unknown:
        lines.append(f"of {unknown} it is not known")
    if count and not noted.get("is_same_corpus", True):
        lines.append("told by their keys: it was trained on another corpus that has utterances with the same keys")
    if not noted.get("is_all", True):
        lines.append("it started from weights that do not say what they were trained on")
    return lines


class _Group(_Part):
    metrics: dict[str, Any]


class _ReportFile(_Part):
    names: dict[str, str]
    settings: _SettingsOf
    outputs_sha256: str
    measured_with: dict[str, str]
    metrics: list[Metric]
    summary: dict[str, _Group]
    utterances: list[_Utterance]
    machine: dict[str, str] = {}


def metrics_of(report: Json) -> dict[str, Metric]:
    """The metrics that a report holds, in order."""
    found = [Metric(**values) for values in report["metrics"]]
    return {metric.name: metric for metric in sorted(found, key=lambda metric: (metric.order, metric.name))}


def cell(metric: Metric, summary: Json | None, *, signed: bool = False) -> Cell | None:
    """A metric's part of a summary, or of differences (`signed`), as it is shown; None where it is not there."""
    if summary is None:
        return None
    if summary["mean"] is None:
        return Cell(NOT_AVAILABLE, "", summary["left_out"])
    mean, low, high = (
        "" if summary[name] is None else metric.shown(summary[name], signed=signed) for name in Interval._fields
    )
    return Cell(mean, f"{low} to {high}" if low else "", summary.get("left_out", 0))


def line(metric: Metric, summary: Json) -> str:
    """A metric as a line of text under `TABLE_HEAD`."""
    shown = cell(metric, summary)
    assert shown is not None, "summaries hold what is asked for"
    left_out = f"   {shown.left_out} left out" if shown.left_out else ""
    return f"  {metric.title[:26]:26}{shown.mean:>8}   {shown.interval:22}{left_out}".rstrip()
