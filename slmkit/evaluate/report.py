"""The page of an evaluation: a table of scores, their distributions, and the utterances worth hearing.

Those are the worst by each metric, with the codec's copy, the recording and a picture beside; sounds and pictures lie
in `listen`, in place of what an earlier report left there.

Example:
    write_page("scores", score_outputs("scores", truths, Tools()), truths)
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slmkit import pages, plot
from slmkit.audio.io import write_wav
from slmkit.audio.mel import HOP_SEC, log_mel
from slmkit.evaluate.metrics import Metric
from slmkit.evaluate.outputs import read_wave, wav_path
from slmkit.evaluate.results import (
    ALL,
    COPY,
    NOT_AVAILABLE,
    REPORT_PAGE,
    TASK_TITLES,
    Json,
    cell,
    headline,
    metrics_of,
    training_lines,
)
from slmkit.evaluate.spoken import Truths
from slmkit.files import atomic_write

LISTEN, HISTOGRAMS = "listen", "listen/histograms.png"
PER_METRIC = 3
ABOUT = ("key", "voice", "voice_key", "speaker", "question", "true_answers", "answer", "heard")


def write_page(directory: str | Path, report: Json, truths: Truths) -> None:
    """Write `report.html` and what it shows. Raises UserError when the disk refuses, or a sound cannot be read."""
    directory, metrics = Path(directory), metrics_of(report)
    shutil.rmtree(directory / LISTEN, ignore_errors=True)
    examples = [_worst_example(directory, row, worst_by, metrics, truths) for row, worst_by in worst(report)]
    columns = {}
    for name, metric in metrics.items():
        scores = [row["scores"].get(name) for row in report["utterances"]]
        values = [score[0] / score[1] for score in scores if score is not None and score[1]]
        if values and not metric.is_detail and not metric.is_timed:
            columns[metric.title] = [100 * value if metric.unit == "%" else value for value in values]
    if columns:
        with atomic_write(directory / HISTOGRAMS, replace=True) as file:
            file.write(plot.histograms(columns))
    name = report["names"].get("model") or "model"
    page = pages.render(
        "report.html",
        title=f"Evaluation of {name}",
        name=name,
        facts=_facts(report),
        headline=headline(report),
        training=training_lines(report),
        trained_keys=_trained_keys(report),
        is_doubtful=not report.get("trained_on", {}).get("is_known") and report["settings"].get("model") != COPY,
        groups=[(group, values["utterances"]) for group, values in report["summary"].items()],
        scores=[
            (metric, [cell(metric, values["metrics"].get(name)) for values in report["summary"].values()])
            for name, metric in metrics.items()
            if name in report["summary"][ALL]["metrics"]
        ],
        histograms=HISTOGRAMS if columns else "",
        examples=examples,
    )
    with atomic_write(directory / REPORT_PAGE, replace=True) as file:
        file.write(page.encode())


def worst(report: Json, per_metric: int = PER_METRIC) -> list[tuple[Json, list[str]]]:
    """The worst utterances by each metric that has a better side, each once with the labels of those metrics.

    One that a metric could not be computed of is worst of all by it; none is where all are equally good. Those that are
    bad by many metrics come first. The first utterances, without labels, where no metric tells them apart.
    """
    rows = report["utterances"]
    labels: dict[int, list[str]] = {}  # place in `rows` -> labels
    for name, metric in metrics_of(report).items():
        if not metric.better or metric.is_timed or metric.is_detail:
            continue
        goodness = {}
        for place, row in enumerate(rows):
            if name not in row["scores"]:
                continue
            if row["scores"][name] is None:
                goodness[place] = float("-inf")
            else:
                amount, weight = row["scores"][name]
                value = amount / weight if weight else amount
                goodness[place] = value if metric.better == "higher" else -value
        best = max(goodness.values(), default=0.0)
        ranked = sorted((value, place) for place, value in goodness.items() if value < best)
        for _, place in ranked[:per_metric]:
            labels.setdefault(place, []).append(metric.label)
    if not labels:
        return [(row, []) for row in rows[:per_metric]]
    return [(rows[place], labels[place]) for place in sorted(labels, key=lambda place: (-len(labels[place]), place))]


def _worst_example(
    directory: Path, row: Json, worst_by: Sequence[str], metrics: Mapping[str, Metric], truths: Truths
) -> dict[str, Any]:
    """Write the sounds and the picture of an utterance; what the page shows of it."""
    place, number, rate = row["place"], row["number"], truths.codec.spec.sample_rate
    sounds, waves = [], {}
    if row["frames"]:
        stored = wav_path(directory, place)
        sounds.append(("generated", stored.relative_to(directory).as_posix()))
        waves["generated"] = read_wave(stored)
    for label, wave in (("copy", truths.copy(number)), ("recording", truths.source(number))):
        if wave is not None:
            name = f"{LISTEN}/{place:05d}-{label}.wav"
            write_wav(directory / name, wave, rate, replace=True)
            sounds.append((label, name))
            waves[label] = wave
    levels = {label: log_mel(wave, rate) for label, wave in waves.items() if len(wave)}
    picture = f"{LISTEN}/{place:05d}-mel.png" if levels else ""
    if picture:
        with atomic_write(directory / picture, replace=True) as file:
            file.write(plot.png(plot.spectra(levels, sec_per_column=HOP_SEC)))
    values = []
    for name, score in row["scores"].items():
        if name in metrics:
            is_known = score is not None and score[1]
            value = metrics[name].shown(score[0] / score[1]) if is_known else NOT_AVAILABLE
            values.append((metrics[name].label, f"{value} {metrics[name].unit}".strip() if is_known else value, False))
    return {
        "text": row["text"],
        "failure": failure_of(row),
        "is_trained_on": row.get("trained_on") is True,
        "worst_by": worst_by,
        "sounds": sounds,
        "picture": picture,
        "about": [
            (name.replace("_", " "), " / ".join(row[name]) if isinstance(row[name], list) else row[name])
            for name in ABOUT
            if row.get(name)
        ],
        "values": values,
    }


def failure_of(row: Json) -> str:
    """What is wrong with an utterance, as a sentence; "" where nothing is."""
    if row["reason"] == "refused":
        return f"There is no answer: {row['why']}."
    if row["reason"] == "runaway":
        return f"Stopped by the watch ({row['limit']}): it would not have ended."
    if row["reason"] == "limit":
        return f"Cut off at the limit of {str(row['limit']).replace('_', ' ')}."
    if not row["frames"]:
        return "The model ended its answer without speech."
    return "The speech is far shorter than its text." if row.get("warning") == "short" else ""


def _trained_keys(report: Json) -> list[str]:
    """Keys of the utterances that the model was trained on, where it was not on all."""
    keys = [row["key"] for row in report["utterances"] if row.get("trained_on") is True]
    return list(dict.fromkeys(keys)) if len(keys) < len(report["utterances"]) else []


def _facts(report: Json) -> list[tuple[str, str]]:
    settings, rows = report["settings"], report["utterances"]
    codec = settings["codec"]
    seconds = sum(row["frames"] for row in rows) * codec["hop_samples"] / codec["sample_rate"]
    facts = [
        ("task", TASK_TITLES[settings["task"]]),
        ("corpus", report["names"].get("corpus", "")),
        ("codec", f"{codec['name']} {codec['weights_sha256'][:12]}"),
        ("utterances", f"{len(rows):,}"),
        ("speech", f"{seconds:,.1f} s"),
        ("seed", str(settings["seed"])),
        ("temperature", f"{settings['sampling']['temperature']:g}"),
    ]
    facts += [(name, str(settings[name])) for name in ("slots", "device") if name in settings]
    facts += [("left out", note) for note in report.get("notes", [])]
    facts += [(f"{label} scored", f"{count} utterances") for label, count in report.get("partial", {}).items()]
    trained_on = report.get("trained_on", {})
    for source in trained_on.get("sources", []):
        share = f"{source['utterances']:,} of {source['of']:,} utterances, {source['task']}"
        facts.append(("trained on", f"{source['path']}: {share}"))
    if trained_on.get("held_out"):
        facts.append(("held out in training", trained_on["held_out"]))
    return facts + [(f"measured with {name}", path) for name, path in report["measured_with"].items()]
