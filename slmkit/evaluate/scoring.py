"""The second stage of an evaluation: stored outputs to scores, one family of metrics after the other.

What was generated is only read. After each family its means are told and `report.json` is written, so that a failure in
a later family loses nothing. Scoring adds to what is there: outputs scored again with a recognizer keep the scores that
need none, and when utterances were added those from before keep theirs. A family is measured again where code or tools
have changed. Metrics that only some of the utterances have, because others were added since, are kept but not shown.

Invariant: equal outputs and tools give an equal report.

Example:
    report = score_outputs("scores", Truths(corpus, codec), Tools(), tell=print)
    report["utterances"][0]["scores"]["success"]        # [1.0, 1.0]
"""

import dataclasses
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slmkit.data.ledger import printable
from slmkit.errors import UserError
from slmkit.evaluate.metrics import Family, Metric, families
from slmkit.evaluate.outputs import NEWER_COLUMNS, Finished, finished
from slmkit.evaluate.results import (
    ALL,
    REPORT,
    TABLE_HEAD,
    Json,
    groups,
    headline,
    line,
    metrics_of,
    read_report,
    summarize,
    training_lines,
)
from slmkit.evaluate.selection import DEFAULT
from slmkit.evaluate.spoken import Spoken, Tools, Truths
from slmkit.files import code_sha256, provenance, sha256_file, write_json
from slmkit.jobs import RECORDS, ProgressBar
from slmkit.log import get_logger
from slmkit.texts import excerpt

LINE_CHARS = 80
NO_TOOL = ""
# What a report calls the model behind a need of metrics. A need without such a name has no model, or it is not known.
TOOL_OF = {"recognizer": "asr", "wavlm": "wavlm", "utmos": "utmos", "distillmos": "distillmos", "dnsmos": "dnsmos"}
logger = get_logger(__name__)


def score_outputs(
    directory: str | Path,
    truths: Truths,
    tools: Tools,
    *,
    measured_with: Mapping[str, str] | None = None,
    unseen: frozenset[str] = frozenset(),
    tell: Callable[[str], None] = lambda line: None,
) -> Json:
    """Score the outputs in a directory and write `report.json`, which is returned.

    `measured_with` says for people which models the tools are; `unseen` are speakers the model was not trained on;
    `tell` is given the lines of a table as soon as they are known.

    Raises UserError as `outputs.finished` does, or when the outputs belong to another corpus or codec.
    """
    outputs = finished(directory)
    _check_belongs(outputs, truths)
    scoring = _Scoring(outputs, truths, tools, measured_with or {}, unseen)
    tell(f"{len(scoring.rows)} utterances")
    for note in [*training_lines(scoring.report), *scoring.report["notes"]]:
        for part in textwrap.wrap(note, LINE_CHARS - 4):
            tell(f"  {part}")
    tell(TABLE_HEAD)
    for family in families():
        if not all(getattr(tools, need) for need in family.needs):
            continue
        scoring.measure(family)
        scoring.note(family)
        write_json(outputs.directory / REPORT, _plain(scoring.report), replace=True)
        found = scoring.report["summary"][ALL]["metrics"]
        for metric in family.metrics:
            if metric.name in found:
                tell(line(metric, found[metric.name]))
    for label, count in scoring.report.get("partial", {}).items():
        tell(f"  {label}: of {count} utterances alone; give its model again for all")
    for short in headline(scoring.report):
        for part in textwrap.wrap(short.line(), LINE_CHARS, subsequent_indent="    "):
            tell(part)
    report: Json = _plain(scoring.report)
    return report


class _Scoring:
    """A report that grows by one family of metrics after the other."""

    def __init__(
        self, outputs: Finished, truths: Truths, tools: Tools, measured_with: Mapping[str, str], unseen: frozenset[str]
    ) -> None:
        self.rows: list[Json] = [{**dataclasses.asdict(record), "scores": {}} for record in outputs.records]
        before = read_report(outputs.directory) if (outputs.directory / REPORT).exists() else None
        self._kept = _keep_scores(self.rows, before)
        self._metrics, self._partial = dict[str, Metric](), dict[str, Metric]()  # by name; of some utterances alone
        self._same_tools = set[str]()  # those by which nothing need be measured again
        if before is not None and self._kept:
            if before.get("code") == code_sha256():
                known = before["measured_with"]
                self._same_tools = {name for name, tool in measured_with.items() if known.get(name) == tool}
                self._same_tools.add(NO_TOOL)
            measured_with, self._metrics = {**before["measured_with"], **measured_with}, metrics_of(before)
            shown = before["summary"].get(ALL, {"metrics": {}})["metrics"]
            is_partial = len(self._kept) < len(self.rows)
            self._partial = {name: one for name, one in self._metrics.items() if is_partial or name not in shown}
        is_same_ear = {NO_TOOL, TOOL_OF["recognizer"]} <= self._same_tools
        self._outcomes = [
            Spoken(
                record=record,
                outputs=outputs,
                truths=truths,
                tools=tools,
                heard_before=row.get("heard") if is_same_ear else None,
            )
            for record, row in zip(outputs.records, self.rows, strict=True)
        ]
        self._members = groups(self.rows, unseen)
        whole = {name: metric for name, metric in self._metrics.items() if name not in self._partial}
        self.report: Json = {
            "names": outputs.names,
            "settings": {name: value for name, value in outputs.settings.items() if name != "utterances"},
            "machine": outputs.machine,
            "trained_on": outputs.trained_on,
            "outputs_sha256": sha256_file(outputs.directory / RECORDS),
            "measured_with": dict(measured_with),
            "notes": _notes(self._outcomes, truths),
            "summary": {name: summarize(group, whole) for name, group in self._members.items()},
            "utterances": self.rows,
            "made_by": provenance(),
            "code": code_sha256(),
        }

    def measure(self, family: Family) -> None:
        """Score every utterance that has no scores of the family, or has them of other tools."""
        is_same = all(TOOL_OF.get(need, NO_TOOL) in self._same_tools for need in (*family.needs, NO_TOOL))
        with ProgressBar(len(self.rows), "utterances", logger, leave=False) as bar:
            for number, (row, spoken) in enumerate(zip(self.rows, self._outcomes, strict=True), 1):
                if is_same and number - 1 in self._kept and family.metrics[0].name in row["scores"]:
                    continue
                row["scores"].update(family.measure(spoken))
                if "recognizer" in family.needs:
                    row["heard"] = spoken.heard
                bar.show(number, family.metrics[0].label)

    def note(self, family: Family) -> None:
        """Bring the report up to date with the scores of a family."""
        named = {metric.name: metric for metric in family.metrics}
        # Names with a part behind a colon are known only now: the streams are the codec's.
        scored = {name for row in self.rows for name in row["scores"]}
        for name in {name for name in scored if ":" in name and name.partition(":")[0] in named}:
            whole, _, part = name.partition(":")
            label = f"{named[whole].label}, {part}"
            named[name] = dataclasses.replace(named[whole], name=name, label=label, is_detail=True)
        self._partial = {name: metric for name, metric in self._partial.items() if name not in named}
        metrics = {**self._metrics, **named}
        self._metrics = dict(sorted(metrics.items(), key=lambda item: (item[1].order, item[0])))
        for group, values in self.report["summary"].items():
            found = {**values["metrics"], **summarize(self._members[group], named)["metrics"]}
            values["metrics"] = {name: found[name] for name in self._metrics if name in found}
        self.report["metrics"] = [dataclasses.asdict(metric) for metric in self._metrics.values()]
        self.report["headline"] = [row._asdict() for row in headline(self.report)]
        self.report["partial"] = {
            metric.label: sum(name in row["scores"] for row in self.rows)
            for name, metric in self._partial.items()
            if not metric.is_detail
        }


def _keep_scores(rows: Sequence[Json], before: Json | None) -> set[int]:
    """Give rows the scores that their outputs have in the report `before`; which of them."""
    kept = set()
    old_rows = {old.get("place"): old for old in before["utterances"]} if before is not None else {}
    for number, row in enumerate(rows):
        old = {**NEWER_COLUMNS, **old_rows.get(row["place"], {})}
        if all(old.get(name) == value for name, value in _plain(row).items() if name != "scores"):
            row["scores"] = old["scores"]
            row |= {"heard": old["heard"]} if "heard" in old else {}
            kept.add(number)
    return kept


def _check_belongs(outputs: Finished, truths: Truths) -> None:
    corpus, voices = truths.corpus, outputs.settings["voices"]
    if outputs.settings["corpus"] != corpus.fingerprint or any(
        record.number >= len(corpus) or corpus.key(record.number) != record.key for record in outputs.records
    ):
        raise UserError(
            "the outputs were generated for another corpus",
            got=corpus.directory,
            expected=outputs.names.get("corpus"),
        )
    for record in outputs.records:
        is_known = record.voice in voices or record.voice == DEFAULT
        if not is_known if record.voice_number is None else record.voice_number >= len(corpus):
            raise UserError(
                f"the voice of an output is not known: {excerpt(record.voice)}",
                got=outputs.directory,
                next_step="generate into a new directory",
            )
    if outputs.settings["codec"] != truths.codec.spec.to_dict():
        raise UserError(
            "the outputs were generated with another codec",
            got=truths.codec.spec.weights_sha256,
            expected=outputs.settings["codec"]["weights_sha256"],
        )


def _notes(outcomes: Sequence[Spoken], truths: Truths) -> list[str]:
    """Which scores are left out of a report, and why."""
    if not all(spoken.is_voice_asked for spoken in outcomes):
        return ["no scores of voices: neither the model nor the codec takes a voice, so none was asked for"]
    if not truths.codec.spec.speaker_dim:
        return ["no SIM codec: the codec has no speaker vectors"]
    return []


def _plain(value: Any) -> Any:
    """Lists, dicts and texts that can be written as UTF-8."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_plain(name): _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
