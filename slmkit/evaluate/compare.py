"""Several evaluations side by side: a row per model, a column per metric, the best marked.

Utterances are paired by key and voice, swapped voices by whose they are; their texts must be equal. The corpora need
not be, so that models of different codecs stand in one table. The difference to the first model has an interval of its
own, of the same utterances drawn again for both: it is much narrower than the intervals of the two means let expect.

Invariant: all numbers of a comparison are over the same utterances.

Example:
    comparison = compare({"ntp": read_report("scores/ntp"), "mtp3": read_report("scores/mtp3")})
    write_comparison(comparison, "scores/table")
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from slmkit.errors import UserError
from slmkit.evaluate.intervals import Score, difference
from slmkit.evaluate.metrics import TIMED, in_order, metric
from slmkit.evaluate.report_page import NO_VALUE, TASKS, value_cell
from slmkit.evaluate.results import Row, read_report, summary
from slmkit.files import atomic_write, new_directory, provenance, write_json
from slmkit.pages import END, SHOWN_NAME, SHOWN_TEXT, bidi, facts_list, head

PAGE, NUMBERS = "report.html", "report.json"
SHOWN_HASH = 12  # digits
NOTE = (
    "The best of each column is green. Under a mean stands its own interval. Differences are to the first model, over "
    "the utterances that both have a score of; where the interval leaves out 0 the difference is bold."
)


def compare_directories(directories: Sequence[str | Path], out: str | Path, *, common: bool = False) -> dict[str, Any]:
    """Compare the reports in the directories and write `report.html` and `report.json` into the new directory `out`.

    Raises UserError as `read_report` and `compare` do, or when `out` exists.
    """
    paths = [Path(directory) for directory in directories]
    short = [path.name for path in paths]
    names = short if len(set(short)) == len(short) else [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise UserError("an evaluation is given twice", got=", ".join(names))
    comparison = compare({name: read_report(path) for name, path in zip(names, paths, strict=True)}, common=common)
    with new_directory(out) as directory:
        write_json(directory / NUMBERS, comparison)
        with atomic_write(directory / PAGE) as file:
            file.write(render(comparison).encode())
    return comparison


def compare(reports: Mapping[str, dict[str, Any]], *, common: bool = False) -> dict[str, Any]:
    """The comparison as plain values. With `common` utterances that not all reports have are left out.

    Raises UserError when there are fewer than two reports, or they are of different tasks, texts or, without `common`,
    utterances.
    """
    if len(reports) < 2:
        raise UserError("there is nothing to compare", got=f"{len(reports)} evaluations", expected="two or more")
    try:
        tables = {
            name: {(row["key"], row["voice"], row["voice_key"]): row for row in found["utterances"]}
            for name, found in reports.items()
        }
        _check_equal(
            "the evaluations are not of one task", {name: found["settings"]["task"] for name, found in reports.items()}
        )
        first = next(iter(tables.values()))
        shared = [pair for pair in first if all(pair in table for table in tables.values())]
        _check_utterances(tables, len(shared), common=common)
        for pair in shared:
            texts = {name: [table[pair]["text"], table[pair]["question"]] for name, table in tables.items()}
            _check_equal(f"the evaluations have different texts for {pair[0]!r}", texts)
        codecs = {name: _codec(found["settings"]["codec"]) for name, found in reports.items()}
    except (KeyError, TypeError) as error:
        raise UserError(f"a report is not that of an evaluation: {error!r}", next_step="score it again") from error
    rows = {name: [table[pair] for pair in shared] for name, table in tables.items()}
    baseline = next(iter(rows))
    return {
        "task": reports[baseline]["settings"]["task"],
        "utterances": len(shared),
        "left_out": {name: len(table) - len(shared) for name, table in tables.items()},
        "codecs": codecs,
        "measured_with": {name: report["measured_with"] for name, report in reports.items()},
        "models": {name: summary(members)["metrics"] for name, members in rows.items()},
        "differences_to": baseline,
        "differences": {name: _differences(rows[baseline], rows[name]) for name in rows if name != baseline},
        "made_by": provenance(),
    }


def best(name: str, models: Mapping[str, dict[str, Any]]) -> set[str]:
    """The models with the best mean of a metric, as it is shown; none where no side is better, or all are equal."""
    one = metric(name)
    means = {model: found[name]["mean"] for model, found in models.items() if name in found}
    known = {model: mean for model, mean in means.items() if mean is not None}
    if not one.better or len(known) < 2:
        return set()
    top = (max if one.better == "high" else min)(known.values())
    found = {model for model, mean in known.items() if one.shown(mean) == one.shown(top)}
    return found if len(found) < len(known) else set()


def render(comparison: dict[str, Any]) -> str:
    """The page of a comparison."""
    models = comparison["models"]
    names = _shown(models)
    facts = [("task", TASKS[comparison["task"]]), ("utterances", f"{comparison['utterances']:,}")]
    facts += [(f"left out of {bidi(name, SHOWN_NAME)}", str(n)) for name, n in comparison["left_out"].items() if n]
    means = [_mean_row(model, names, models) for model in models]
    differences = [_difference_row(model, names, found) for model, found in comparison["differences"].items()]
    return "\n".join(
        [
            head("Models compared"),
            "<h1>Models compared</h1>",
            facts_list(facts),
            f'<h2>Scores</h2>\n<p class="note">{NOTE}</p>',
            _table(names, means),
            *(f'<p class="why">{bidi(sentence, SHOWN_TEXT)}</p>' for sentence in _unlike(comparison)),
            f"<h2>Differences to {bidi(comparison['differences_to'], SHOWN_NAME)}</h2>",
            _table(names, differences),
            END,
        ]
    )


def lines(comparison: dict[str, Any]) -> list[str]:
    """The means as text: a line of names, then a line per model, `*` marks the best; then what is not alike."""
    models = comparison["models"]
    names = _shown(models)
    rows = [["", *(metric(name).title for name in names)]]
    for model, found in models.items():
        rows.append([model, *(_plain(name, found.get(name), model in best(name, models)) for name in names)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    table = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return table + _unlike(comparison)


def _shown(models: Mapping[str, dict[str, Any]]) -> list[str]:
    """Metrics that have a column: those of single streams are in the numbers alone."""
    return in_order({name for found in models.values() for name in found if ":" not in name})


def _plain(name: str, found: Row | None, is_best: bool) -> str:
    if found is None or found["mean"] is None:
        return "-"
    return metric(name).shown(found["mean"]) + "*" * is_best


def _check_equal(what: str, values: Mapping[str, Any]) -> None:
    (first, expected), *others = values.items()
    for name, value in others:
        if value != expected:
            raise UserError(what, got=f"{name}: {value}", expected=f"{first}: {expected}")


def _codec(spec: dict[str, Any]) -> str:
    return f"{spec['name']} {spec['weights_sha256'][:SHOWN_HASH]}"


def _unlike(comparison: dict[str, Any]) -> list[str]:
    """What the models differ in that makes some columns no fair comparison, as sentences."""
    found = []
    if len(set(comparison["codecs"].values())) > 1:
        found.append(
            "The models speak through different codecs: SIM codec, mel distance and frames equal are each of its own."
        )
    scorers = {name for given in comparison["measured_with"].values() for name in given}
    for name in sorted(scorers):
        paths = {given[name] for given in comparison["measured_with"].values() if name in given}
        if len(paths) > 1:
            found.append(f"Measured with different models for {name}: {', '.join(sorted(paths))}.")
    return found


def _check_utterances(tables: Mapping[str, dict[Any, Row]], num_shared: int, *, common: bool) -> None:
    counts = ", ".join(f"{name}: {len(table)}" for name, table in tables.items())
    if not num_shared:
        raise UserError("the evaluations have no utterance in common", got=counts)
    if not common and any(len(table) > num_shared for table in tables.values()):
        raise UserError(
            "the evaluations are not of the same utterances",
            got=f"{counts}; {num_shared} in common",
            next_step="--common compares those alone, and says so",
        )


def _differences(first: Sequence[Row], second: Sequence[Row]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    names = {name for row in first for name in row["scores"]} & {name for row in second for name in row["scores"]}
    for name in in_order(names):
        pairs = [(_score(name, a), _score(name, b)) for a, b in zip(first, second, strict=True)]
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        interval = difference([a for a, _ in both], [b for _, b in both])
        if interval is not None and name not in TIMED:
            found[name] = {**interval._asdict(), "pairs": len(both)}
    return found


def _score(name: str, row: Row) -> Score | None:
    score = row["scores"].get(name)
    return None if score is None else (score[0], score[1])


def _table(names: Sequence[str], rows: Sequence[str]) -> str:
    heads = "".join(
        f"<th>{bidi(f'{metric(name).title} {metric(name).unit}'.strip(), SHOWN_NAME)}</th>" for name in names
    )
    return (
        f'<div class="grid"><table class="scores stacked">\n<tr><th></th>{heads}</tr>\n'
        + "\n".join(rows)
        + "\n</table></div>"
    )


def _mean_row(model: str, names: Sequence[str], models: Mapping[str, dict[str, Any]]) -> str:
    cells = []
    for name in names:
        mark = ' class="best"' if model in best(name, models) else ""
        cells.append(f"<td{mark}>{value_cell(name, models[model].get(name)) or NO_VALUE}</td>")
    return f"<tr><td>{bidi(model, SHOWN_NAME)}</td>{''.join(cells)}</tr>"


def _difference_row(model: str, names: Sequence[str], found: dict[str, Any]) -> str:
    cells = []
    for name in names:
        if name not in found:
            cells.append(f"<td>{NO_VALUE}</td>")
            continue
        one, shown = found[name], metric(name).shown
        mean = f"{'+' * (one['mean'] > 0)}{shown(one['mean'])}"
        is_clear = one["low"] > 0 or one["high"] < 0
        mean = f"<strong>{mean}</strong>" if is_clear else mean
        cells.append(f"<td>{mean} <small>{shown(one['low'])} to {shown(one['high'])}</small></td>")
    return f"<tr><td>{bidi(model, SHOWN_NAME)}</td>{''.join(cells)}</tr>"
