"""Several evaluations side by side: a row per metric, a column per model, the best marked.

Utterances are paired by key and voice, swapped voices by whose they are; their texts must be equal. The corpora need
not be, so that models of different codecs stand in one table. The difference to the first model has an interval of its
own, from the same utterances drawn for both: it is much narrower than the intervals of the two means suggest.

The best is marked only among models that speak: what fails at most sentences may still be the fastest, or the cleanest.
Copies of the true codes are a ceiling and never the best. Speeds are compared where machine, device, threads and slots
are the same, and left out where they are not. On the page a few sentences can be heard by all models side by side.

Invariant: all numbers of a comparison are over the same utterances.

Example:
    comparison = compare_reports({"ntp": read_report("scores/ntp"), "mtp3": read_report("scores/mtp3")})
    print("\\n".join(text_table(comparison)))
"""

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from slmkit import pages
from slmkit.errors import UserError
from slmkit.evaluate.metrics import Metric
from slmkit.evaluate.results import (
    ALL,
    COPY,
    NOT_AVAILABLE,
    REPORT,
    REPORT_PAGE,
    SEVERAL_MACHINES,
    TASK_TITLES,
    Json,
    cell,
    difference,
    metrics_of,
    read_report,
    summarize,
)
from slmkit.files import atomic_write, disk_errors_named, new_directory, provenance, write_json

LINE_CHARS, NAME_CHARS = 80, 18  # of the printed table
WAVES_DIR, LISTEN, NUM_SENTENCES = "wav", "listen", 12
SPEAKS = 0.5  # the share of successes from which on a model counts as one that speaks
SPEED_SETTINGS = ("device", "threads", "slots")


def compare_directories(directories: Sequence[str | Path], out: str | Path, *, common: bool = False) -> dict[str, Any]:
    """Compare the reports in the directories and write `report.html` and `report.json` into the new directory `out`.

    Raises UserError as `read_report` and `compare_reports` do, or when `out` exists.
    """
    paths = [Path(directory) for directory in directories]
    short = [path.name for path in paths]
    names = short if len(set(short)) == len(short) else [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise UserError("an evaluation is given twice", got=", ".join(names))
    with new_directory(out) as directory:
        reports = {name: read_report(path) for name, path in zip(names, paths, strict=True)}
        comparison = compare_reports(reports, common=common)
        write_json(directory / REPORT, comparison)
        sentences = _sentences(reports, dict(zip(names, paths, strict=True)), directory)
        with atomic_write(directory / REPORT_PAGE) as file:
            file.write(page(comparison, sentences).encode())
    return comparison


def _sentences(reports: Mapping[str, Json], paths: Mapping[str, Path], directory: Path) -> list[Json]:
    """Some of the utterances that all have, evenly spread, with the speech of each model copied into `directory`."""
    tables = {name: _by_utterance(report) for name, report in reports.items()}
    first = next(iter(tables.values()))
    shared = [pair for pair in first if all(pair in table for table in tables.values())]
    number, found = min(NUM_SENTENCES, len(shared)), []
    for i, pair in enumerate(shared[place * len(shared) // number] for place in range(number)):
        spoken = []
        for j, (name, table) in enumerate(tables.items()):
            row, sound = table[pair], ""
            wave = paths[name] / WAVES_DIR / f"{row.get('place', -1):05d}.wav"
            if row.get("frames") and wave.is_file():
                sound = f"{LISTEN}/{i:02d}-{j}.wav"
                with disk_errors_named(directory / sound):
                    (directory / LISTEN).mkdir(exist_ok=True)
                    shutil.copyfile(wave, directory / sound)
            spoken.append((name, sound, row.get("heard", ""), row.get("trained_on") is True))
        about = [("key", pair[0]), ("voice", " ".join(filter(None, pair[1:])))]
        found.append({"text": first[pair]["text"], "about": about, "spoken": spoken})
    return found


def _by_utterance(report: Json) -> dict[tuple[str, str, str], Json]:
    return {(row["key"], row["voice"], row["voice_key"]): row for row in report["utterances"]}


def compare_reports(reports: Mapping[str, dict[str, Any]], *, common: bool = False) -> dict[str, Any]:
    """The comparison as plain values. With `common` utterances that not all reports have are left out.

    Raises UserError when there are fewer than two reports, they have no scores, or they are of different tasks, texts
    or, without `common`, utterances.
    """
    if len(reports) < 2:
        raise UserError("there is nothing to compare", got=f"{len(reports)} evaluations", expected="two or more")
    try:
        tables = {name: _by_utterance(found) for name, found in reports.items()}
        _check_equal(
            "the evaluations are not of one task", {name: found["settings"]["task"] for name, found in reports.items()}
        )
        first = next(iter(tables.values()))
        shared = [pair for pair in first if all(pair in table for table in tables.values())]
        counts = ", ".join(f"{name}: {len(table)}" for name, table in tables.items())
        if not shared:
            raise UserError("the evaluations have no utterance in common", got=counts)
        if not common and any(len(table) > len(shared) for table in tables.values()):
            raise UserError(
                "the evaluations are not of the same utterances",
                got=f"{counts}; {len(shared)} in common",
                next_step="--common compares those alone, and says so",
            )
        for pair in shared:
            texts = {name: [table[pair]["text"], table[pair]["question"]] for name, table in tables.items()}
            _check_equal(f"the evaluations have different texts for {pair[0]!r}", texts)
        codecs = {
            name: f"{found['settings']['codec']['name']} {found['settings']['codec']['weights_sha256'][:12]}".strip()
            for name, found in reports.items()
        }
        described = {
            name: metric
            for found in reports.values()
            for name, metric in metrics_of(found).items()
            if ALL not in found["summary"] or name in found["summary"][ALL]["metrics"]
        }
        speeds = {name: _speed_of(found) for name, found in reports.items() if not _is_copy(found)}
    except (KeyError, TypeError) as error:
        raise UserError(f"a report is not that of an evaluation: {error!r}", next_step="score it again") from error
    has_speed = any(metric.is_timed for metric in described.values())
    is_fair = None not in speeds.values() and len({repr(speed) for speed in speeds.values()}) < 2
    metrics = {
        name: metric for name, metric in described.items() if not metric.is_detail and (is_fair or not metric.is_timed)
    }
    metrics = dict(sorted(metrics.items(), key=lambda item: (item[1].order, item[0])))
    if not metrics:
        raise UserError("the evaluations have no score to compare", got=counts, next_step="score them again")
    rows = {name: [table[pair] for pair in shared] for name, table in tables.items()}
    baseline = next(iter(rows))
    models = {name: summarize(members, metrics)["metrics"] for name, members in rows.items()}
    return {
        "task": reports[baseline]["settings"]["task"],
        "utterances": len(shared),
        "left_out": {name: len(table) - len(shared) for name, table in tables.items()},
        "codecs": codecs,
        "copies": [name for name, report in reports.items() if _is_copy(report)],
        "trained_on": {name: sum(row.get("trained_on") is True for row in of) for name, of in rows.items()},
        "speeds_left_out": {name: speed or {} for name, speed in speeds.items()} if has_speed and not is_fair else {},
        "measured_with": {name: report["measured_with"] for name, report in reports.items()},
        "metrics": [asdict(metric) for metric in metrics.values() if any(metric.name in of for of in models.values())],
        "models": models,
        "differences_to": baseline,
        "differences": {
            name: _paired_differences(rows[baseline], rows[name], metrics) for name in rows if name != baseline
        },
        "made_by": provenance(),
    }


def _is_copy(report: Json) -> bool:
    return bool(report["settings"].get("model") == COPY)


def _speed_of(report: Json) -> dict[str, str] | None:
    """What the speeds of a report depend on; None where it is not known, or was not one machine all along."""
    settings, machine = report["settings"], report.get("machine")
    if not machine or SEVERAL_MACHINES in machine.values() or not all(name in settings for name in SPEED_SETTINGS):
        return None
    return {**machine, **{name: str(settings[name]) for name in SPEED_SETTINGS}}


def _check_equal(what: str, values: Mapping[str, Any]) -> None:
    (name, first), *others = values.items()
    for other, value in others:
        if value != first:
            raise UserError(what, got=f"{other}: {value}", expected=f"{name}: {first}")


def _paired_differences(first: Sequence[Json], second: Sequence[Json], metrics: Mapping[str, Metric]) -> dict[str, Any]:
    """Of each metric, over the utterances that both have a score of."""
    found: dict[str, Any] = {}
    for name, metric in metrics.items():
        pairs = [(a["scores"].get(name), b["scores"].get(name)) for a, b in zip(first, second, strict=True)]
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        interval = None if metric.is_timed else difference([a for a, _ in both], [b for _, b in both])
        if interval is not None:
            found[name] = {**interval._asdict(), "pairs": len(both)}
    return found


def best(metric: Metric, models: Mapping[str, dict[str, Any]], copies: Collection[str] = ()) -> set[str]:
    """The models with the best mean of a metric, as it is shown; none where no side is better, or all are equal.

    Models that do not speak, and `copies`, are none of them.
    """
    speaking = {model: found for model, found in models.items() if model not in copies and speaks(found)}
    means = {model: found[metric.name]["mean"] for model, found in speaking.items() if metric.name in found}
    known = {model: mean for model, mean in means.items() if mean is not None}
    if not metric.better or len(known) < 2:
        return set()
    top = (max if metric.better == "higher" else min)(known.values())
    found = {model for model, mean in known.items() if metric.shown(mean) == metric.shown(top)}
    return found if len(found) < len(known) else set()


def speaks(means: Mapping[str, Any]) -> bool:
    """Whether a model with these means counts as one that speaks."""
    share = means.get("success", {}).get("mean")
    return share is None or share >= SPEAKS


def warnings(comparison: dict[str, Any]) -> list[str]:
    """What the models differ in that makes some metrics no fair comparison, as sentences."""
    found = []
    if silent := [model for model, means in comparison["models"].items() if not speaks(means)]:
        found.append(f"Never the best, because they fail at most sentences: {', '.join(silent)}.")
    if known := [f"{count} by {model}" for model, count in comparison["trained_on"].items() if count]:
        found.append(f"Of the {comparison['utterances']} utterances some were trained on: {', '.join(known)}.")
    if comparison["speeds_left_out"]:
        found.append(
            "Speeds are not compared: machine, device, threads or slots differ, or are not known. Each evaluation has "
            "its own."
        )
    if len(set(comparison["codecs"].values())) > 1:
        found.append(
            "The models use different codecs: SIM codec, mel distance and frames equal are each relative to its own."
        )
    for name in sorted({name for given in comparison["measured_with"].values() for name in given}):
        paths = {given[name] for given in comparison["measured_with"].values() if name in given}
        if len(paths) > 1:
            found.append(f"Measured with different models for {name}: {', '.join(sorted(paths))}.")
    return found


def page(comparison: dict[str, Any], sentences: Sequence[Json] = ()) -> str:
    """The comparison as HTML, with sentences to hear as `compare_directories` makes them."""
    models, metrics = comparison["models"], metrics_of(comparison)
    scores = []
    for name, metric in metrics.items():
        top = best(metric, models, comparison["copies"])
        scores.append(
            (
                metric.title,
                metric.better,
                [(cell(metric, found.get(name)), model in top) for model, found in models.items()],
            )
        )
    others = list(comparison["differences"])
    differences = []
    for name, metric in metrics.items():
        found = [comparison["differences"][model].get(name) for model in others]
        if any(found):
            shown = [cell(metric, one, signed=True) for one in found]
            is_clear = [bool(one) and (one["low"] > 0 or one["high"] < 0) for one in found]
            differences.append((metric.title, list(zip(shown, is_clear, strict=True))))
    return pages.render(
        "compare.html",
        title="Models compared",
        facts=[
            ("task", TASK_TITLES[comparison["task"]]),
            ("utterances", f"{comparison['utterances']:,}"),
            *((f"left out of {name}", str(count)) for name, count in comparison["left_out"].items() if count),
        ],
        models=list(models),
        scores=scores,
        warnings=warnings(comparison),
        baseline=comparison["differences_to"],
        others=others,
        differences=differences,
        sentences=sentences,
    )


def text_table(comparison: dict[str, Any]) -> list[str]:
    """The means as text: a row per metric, as many models side by side as fit a line; `*` marks the best. Then what
    makes them no fair comparison."""
    models, metrics = comparison["models"], metrics_of(comparison)
    first = max(len(metric.title) for metric in metrics.values())
    columns = []
    for model, found in models.items():
        name = model if len(model) <= NAME_CHARS else "…" + model[1 - NAME_CHARS :]
        shown = [
            (cell(metric, found.get(key)), model in best(metric, models, comparison["copies"]))
            for key, metric in metrics.items()
        ]
        cells = [name, *((one.mean if one else NOT_AVAILABLE) + (" ", "*")[is_best] for one, is_best in shown)]
        width = max(map(len, cells))
        columns.append([f"{text:>{width}}" for text in cells])
    blocks: list[list[list[str]]] = [[]]
    for column in columns:
        if first + sum(2 + len(other[0]) for other in [*blocks[-1], column]) > LINE_CHARS:
            blocks.append([])
        blocks[-1].append(column)
    found_lines = []
    for block in blocks:
        for i, title in enumerate(["", *(metric.title for metric in metrics.values())]):
            found_lines.append("  ".join([f"{title:{first}}", *(column[i] for column in block)]).rstrip())
    return found_lines + warnings(comparison)
