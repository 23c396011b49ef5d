"""The second stage of an evaluation: stored outputs to scores, one family of metrics after the other.

What was generated is only read. After each family its means are told and `report.json` is written, so that a failure in
a later family loses nothing. Scoring adds to what is there: the same outputs scored again with a recognizer keep the
scores that need none.

Invariant: equal outputs and tools give an equal report.

Example:
    report = score_outputs("scores", Truths(corpus, codec), Tools(), tell=print)
    report["utterances"][0]["scores"]["success"]        # [1.0, 1.0]
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from slmkit.data.ledger import printable
from slmkit.errors import UserError
from slmkit.evaluate.metrics import Metric, families
from slmkit.evaluate.outputs import Finished, finished
from slmkit.evaluate.results import ALL, REPORT, TABLE_HEAD, Json, groups, line, metrics_of, read_report, summarize
from slmkit.evaluate.selection import DEFAULT
from slmkit.evaluate.spoken import Spoken, Tools, Truths
from slmkit.files import provenance, sha256_file, write_json
from slmkit.jobs import RECORDS, ProgressBar
from slmkit.log import get_logger
from slmkit.texts import excerpt

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
    directory = Path(directory)
    outputs = finished(directory)
    _check_belongs(outputs, truths)
    outcomes = [Spoken(record=record, outputs=outputs, truths=truths, tools=tools) for record in outputs.records]
    rows: list[Json] = [{**dataclasses.asdict(record), "scores": {}} for record in outputs.records]
    measured_with, metrics = dict(measured_with or {}), dict[str, Metric]()
    outputs_sha256 = sha256_file(directory / RECORDS)
    before = read_report(directory) if (directory / REPORT).exists() else None
    if before is not None and before["outputs_sha256"] == outputs_sha256 and len(before["utterances"]) == len(rows):
        measured_with, metrics = {**before["measured_with"], **measured_with}, metrics_of(before)
        rows = [{**old, **row, "scores": old["scores"]} for old, row in zip(before["utterances"], rows, strict=True)]
    members = groups(rows, unseen)
    summary = {name: summarize(group, metrics) for name, group in members.items()}
    made_by, report = provenance(), Json()
    notes = _notes(outcomes, truths)
    tell(f"{len(rows)} utterances")
    for note in notes:
        tell(f"  {note}")
    tell(TABLE_HEAD)
    for family in families():
        if not all(getattr(tools, need) for need in family.needs):
            continue
        with ProgressBar(len(rows), "utterances", logger, leave=False) as bar:
            for number, (row, spoken) in enumerate(zip(rows, outcomes, strict=True), 1):
                row["scores"].update(family.measure(spoken))
                if "recognizer" in family.needs:
                    row["heard"] = spoken.heard
                bar.show(number, family.metrics[0].label)
        named = {metric.name: metric for metric in family.metrics}
        # Names with a part behind a colon are known only now: the streams are the codec's.
        for name in {name for row in rows for name in row["scores"] if ":" in name and name.partition(":")[0] in named}:
            whole, _, part = name.partition(":")
            label = f"{named[whole].label}, {part}"
            named[name] = dataclasses.replace(named[whole], name=name, label=label, is_detail=True)
        metrics |= named
        metrics = dict(sorted(metrics.items(), key=lambda item: (item[1].order, item[0])))
        for group, values in summary.items():
            found = {**values["metrics"], **summarize(members[group], named)["metrics"]}
            values["metrics"] = {name: found[name] for name in metrics if name in found}
        report = _plain(
            {
                "names": outputs.names,
                "settings": {name: value for name, value in outputs.settings.items() if name != "utterances"},
                "outputs_sha256": outputs_sha256,
                "measured_with": measured_with,
                "notes": notes,
                "metrics": [dataclasses.asdict(metric) for metric in metrics.values()],
                "summary": summary,
                "utterances": rows,
                "made_by": made_by,
            }
        )
        write_json(directory / REPORT, report, replace=True)
        for metric in family.metrics:
            if metric.name in summary[ALL]["metrics"]:
                tell(line(metric, summary[ALL]["metrics"][metric.name]))
    return report


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
