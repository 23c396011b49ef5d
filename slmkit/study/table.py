"""The results of a study: a table for each evaluation, as a page with players, Markdown and LaTeX, and a picture.

    OUT/table/index.html, table.md, table.tex, NAME.png, listen/

Rows are models, columns are metrics; the numbers are those of the reports of `slmkit evaluate`, over all utterances of
each. A row without a report says why. The best of a column is marked among the models, not the codecs' own copies.

Invariant: equal reports and states give equal tables.

Example:
    write_table(plan, look(plan))
    print("\\n".join(text_table(plan, look(plan))))
"""

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from slmkit import pages, plot
from slmkit.evaluate.compare import best
from slmkit.evaluate.metrics import Metric
from slmkit.evaluate.results import ALL, NOT_AVAILABLE, REPORT_PAGE, Json, cell, metrics_of, read_report
from slmkit.files import atomic_write
from slmkit.study.plan import Row, StudyPlan
from slmkit.study.work import STATES, Status

SPOKEN = 3  # sentences to listen to
ERRORS = ("wer", "log_mel_distance_db")  # of the picture, the first that two models have
SPEED = "real_time_factor"
ARROWS = {"higher": "↑", "lower": "↓", "": ""}


class Value(NamedTuple):
    """A number of a table."""

    mean: str
    interval: str
    is_best: bool


@dataclass(frozen=True, kw_only=True)
class Line:
    """A row of a table: values, or why there are none."""

    label: str
    codec: str
    is_copy: bool
    why: str
    values: tuple[Value | None, ...]
    scores: str  # directory of the evaluation
    report: Json | None


@dataclass(frozen=True, kw_only=True)
class Table:
    """One evaluation of all models."""

    name: str
    columns: tuple[Metric, ...]
    lines: tuple[Line, ...]


def tables_of(plan: StudyPlan, statuses: Mapping[str, Status]) -> list[Table]:
    """The tables, one for each evaluation. Raises UserError when a report is damaged."""
    return [_table(plan, name, statuses) for name in plan.config.evaluations]


def _table(plan: StudyPlan, name: str, statuses: Mapping[str, Status]) -> Table:
    rows = [row for row in plan.rows if row.evaluation == name]
    reports = {row.step: _report(plan, row, statuses) for row in rows}
    known = [report for report in reports.values() if report is not None]
    described = {metric: found for report in known for metric, found in metrics_of(report).items()}
    summaries = {step: report["summary"][ALL]["metrics"] for step, report in reports.items() if report is not None}
    columns = [
        described[metric]
        for metric in plan.config.columns
        if metric in described and any(metric in found for found in summaries.values())
    ]
    models = {row.step: summaries[row.step] for row in rows if row.cell is not None and row.step in summaries}
    leaders = {metric.name: best(metric, models) for metric in columns}
    lines = []
    for row in rows:
        report, values = reports[row.step], list[Value | None]()
        for metric in columns:
            shown = cell(metric, summaries.get(row.step, {}).get(metric.name))
            is_best = row.step in leaders[metric.name]
            values.append(None if shown is None else Value(shown.mean, shown.interval, is_best))
        lines.append(
            Line(
                label=plan.model_label(row),
                codec=row.codec,
                is_copy=row.cell is None,
                why="" if report is not None else _why(plan, row, statuses),
                values=tuple(values),
                scores=plan.by_name[row.step].directory,
                report=report,
            )
        )
    return Table(name=name, columns=tuple(columns), lines=tuple(lines))


def _report(plan: StudyPlan, row: Row, statuses: Mapping[str, Status]) -> Json | None:
    return read_report(plan.by_name[row.step].directory) if statuses[row.step].state == "done" else None


def _why(plan: StudyPlan, row: Row, statuses: Mapping[str, Status]) -> str:
    """Why a row has no values: the step that failed, or how far it is."""
    chain = [step for step in statuses if step == row.step or step in plan.all_needs(row.step)]
    for name in chain:
        if statuses[name].state in ("failed", "changed"):
            return f"{STATES[statuses[name].state]}: {name}, {statuses[name].why}"
    being_done = [name for name in chain if statuses[name].state == "running"]
    left = sum(statuses[name].state != "done" for name in chain)
    left_words = f"{left} steps are left" if left != 1 else "1 step is left"
    return f"not done: {f'{being_done[0]} is being done' if being_done else left_words}"


def write_table(plan: StudyPlan, statuses: Mapping[str, Status]) -> Path:
    """Write the tables into OUT/TABLE; gives the page. What an earlier table left is replaced.

    Raises UserError when a report is damaged or the disk refuses.
    """
    out = Path(plan.config.out) / plan.config.table
    tables = tables_of(plan, statuses)
    title = plan.config.title or Path(plan.config.out).name
    pictures, sections = {}, []
    for table in tables:
        picture = speed_picture(table)
        if picture is not None:
            pictures[f"{table.name}.png"] = picture
        sections.append(
            {
                "name": table.name,
                "columns": [(metric, heading(metric)) for metric in table.columns],
                "lines": table.lines,
                "reports": [_relative(out, Path(line.scores) / REPORT_PAGE) for line in table.lines],
                "picture": f"{table.name}.png" if picture is not None else "",
                "sentences": _sentences(table, out),
            }
        )
    for name, content in pictures.items():
        with atomic_write(out / name, replace=True) as file:
            file.write(content)
    for template, name in (("study.md", "table.md"), ("study.tex", "table.tex"), ("study.html", "index.html")):
        page = pages.render(template, title=title, sections=sections)
        with atomic_write(out / name, replace=True) as file:
            file.write(page.encode())
    return out / "index.html"


def heading(metric: Metric) -> str:
    """Name, unit and the better side of a metric."""
    return f"{metric.title} {ARROWS[metric.better]}".strip()


def _relative(folder: Path, path: Path) -> str:
    """`path` as a page in `folder` names it; both lie in one directory of a study."""
    return (Path("..") / path.relative_to(folder.parent)).as_posix()


def _sentences(table: Table, out: Path) -> list[dict[str, Any]]:
    """The first utterances that all rows with a report have, with the sound of each, copied into `out`."""
    found = {line.label: _spoken(line.report) for line in table.lines if line.report is not None}
    if not found:
        return []
    shared = [pair for pair in next(iter(found.values())) if all(pair in spoken for spoken in found.values())]
    sentences = []
    for number, pair in enumerate(shared[:SPOKEN]):
        sounds = []
        for place, line in enumerate(table.lines):
            if line.report is None:
                continue
            utterance = found[line.label][pair]
            source = Path(line.scores) / "wav" / f"{utterance['place']:05d}.wav"
            copy = Path("listen") / f"{table.name}-{number}-{place:03d}.wav"
            if source.is_file():
                (out / copy).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, out / copy)
            sounds.append((line.label, copy.as_posix() if source.is_file() else ""))
        first = next(iter(found.values()))[pair]
        sentences.append({"text": first["question"] or first["text"], "voice": first["voice"], "sounds": sounds})
    return sentences


def _spoken(report: Json) -> dict[tuple[str, str], Json]:
    return {(row["key"], row["voice"]): row for row in report["utterances"]}


def speed_picture(table: Table) -> bytes | None:
    """PNG of error against speed of the models, each codec a colour; None where fewer than two have both."""
    reports = [line.report for line in table.lines if line.report is not None]
    for error in ERRORS:
        points: dict[str, list[tuple[float, float, str]]] = {}
        for line in table.lines:
            if line.report is None or line.is_copy:
                continue
            found = line.report["summary"][ALL]["metrics"]
            slow, wrong = (found.get(name, {}).get("mean") for name in (SPEED, error))
            if slow and wrong is not None:
                kind = line.label.removeprefix(line.codec).strip()
                points.setdefault(line.codec, []).append((1 / slow, wrong, kind))
        if sum(map(len, points.values())) > 1:
            metric = next(found[error] for found in map(metrics_of, reports) if error in found)
            scale = 100 if metric.unit == "%" else 1
            scaled = {name: [(x, scale * y, text) for x, y, text in group] for name, group in points.items()}
            return plot.scatter(
                scaled, title=table.name, x_label="seconds of speech decoded per second", y_label=metric.title
            )
    return None


def text_table(plan: StudyPlan, statuses: Mapping[str, Status]) -> list[str]:
    """The tables as lines of text; `*` marks the best."""
    lines: list[str] = []
    for table in tables_of(plan, statuses):
        head = [table.name, *(heading(metric) for metric in table.columns)]
        body = []
        for line in table.lines:
            values = [(NOT_AVAILABLE if one is None else one.mean + "*" * one.is_best) for one in line.values]
            body.append([line.label, *values] if not line.why else [line.label, line.why])
        lines += ["", *aligned([head, *body])]
    return lines[1:]


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows in columns: the first to the left, numbers to the right. A row of two cells is a text behind its name."""
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[i]) for row in full) for i in range(len(rows[0]))]
    widths[0] = max(len(row[0]) for row in rows)
    lines = []
    for row in rows:
        rest = [f"{text:>{width}}" for text, width in zip(row[1:], widths[1:], strict=False)]
        if len(row) != len(rows[0]):
            rest = [re.sub(r"\s+", " ", text) for text in row[1:]]
        lines.append("  ".join([f"{row[0]:{widths[0]}}", *rest]).rstrip())
    return lines
