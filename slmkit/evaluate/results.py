"""The numbers of an evaluation: rows of scores to a summary by groups of voices, kept as `report.json`.

Scoring adds to what is there: the same outputs scored again with a recogniser keep the scores that need none. Groups
are all utterances; each voice, where there are several; and voices the model has seen and has not, where a list of the
unseen speakers is given.

Invariant: equal outputs and scorers give an equal file.

Example:
    report = build(outputs, rows, earlier(directory), measured_with={"asr": "whisper-small"}, unseen=frozenset())
    report["summary"]["all"]["metrics"]["wer"]      # {"mean": 0.031, "low": 0.02, "high": 0.05, "counted": 200, ...}
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slmkit.data.ledger import printable
from slmkit.errors import UserError
from slmkit.evaluate.intervals import Score, bootstrap
from slmkit.evaluate.metrics import TIMED, in_order
from slmkit.evaluate.outputs import RECORDS, Finished
from slmkit.files import provenance, read_json, sha256_file

REPORT = "report.json"
ALL, SEEN, UNSEEN = "all", "seen voices", "unseen voices"
KEYS = ("names", "settings", "outputs_sha256", "measured_with", "summary", "utterances")

Row = dict[str, Any]


def build(
    outputs: Finished, rows: Sequence[Row], before: Row | None, *, measured_with: dict[str, str], unseen: frozenset[str]
) -> Row:
    """The report of `rows`, with the scores of the report `before` that they lack. `measured_with` names scorers."""
    outputs_sha256 = sha256_file(outputs.directory / RECORDS)
    if before is not None and before["outputs_sha256"] == outputs_sha256:
        measured_with = {**before["measured_with"], **measured_with}
        rows = [
            {**old, **new, "scores": {**old["scores"], **new["scores"]}}
            for old, new in zip(before["utterances"], rows, strict=True)
        ]
    rows = [_ready(row) for row in rows]
    return {
        "names": _ready(outputs.names),
        "settings": _ready({name: value for name, value in outputs.settings.items() if name != "utterances"}),
        "outputs_sha256": outputs_sha256,
        "measured_with": measured_with,
        "summary": {name: summary(members) for name, members in groups(rows, unseen).items()},
        "utterances": rows,
        "made_by": provenance(),
    }


def read_report(directory: str | Path) -> Row:
    """The report in a directory. Raises UserError when there is none, or it is something else."""
    path = Path(directory) / REPORT
    if not path.is_file():
        raise UserError(f"{directory} holds no scores", expected=REPORT, next_step="score the outputs first")
    report = read_json(path)
    if not isinstance(report, dict) or not report.keys() >= set(KEYS):
        raise UserError(f"{path} is not the report of an evaluation", next_step="score the outputs again")
    return report


def groups(rows: Sequence[Row], unseen: frozenset[str]) -> dict[str, list[Row]]:
    """Rows by name of the group; groups overlap."""
    found = {ALL: list(rows)}
    voices = list(dict.fromkeys(row["voice"] for row in rows))
    if len(voices) > 1:
        found |= {f"voice {voice}": [row for row in rows if row["voice"] == voice] for voice in voices}
    if unseen:
        found[SEEN] = [row for row in rows if row["speaker"] not in unseen]
        found[UNSEEN] = [row for row in rows if row["speaker"] in unseen]
    return found


def summary(rows: Sequence[Row]) -> Row:
    """How many rows there are and, of each metric, its mean with an interval, how many count and are left out."""
    names = in_order({name for row in rows for name in row["scores"]})
    return {"utterances": len(rows), "metrics": {name: _summary(name, rows) for name in names}}


def scores_of(name: str, rows: Sequence[Row]) -> list[Score | None]:
    """The scores of a metric, None where it was left out; rows that it does not concern are not there."""
    return [None if score is None else (score[0], score[1]) for row in rows for score in _there(name, row)]


def _there(name: str, row: Row) -> list[Any]:
    return [row["scores"][name]] if name in row["scores"] else []


def _summary(name: str, rows: Sequence[Row]) -> Row:
    scores = scores_of(name, rows)
    counted = [score for score in scores if score is not None]
    found = bootstrap(counted)
    values = dict(found._asdict() if found else dict.fromkeys(("mean", "low", "high")))
    if name in TIMED:
        values |= {"low": None, "high": None}
    return {**values, "counted": len(counted), "left_out": len(scores) - len(counted)}


def _ready(value: Any) -> Any:
    """Plain values that can be written as UTF-8."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_ready(name): _ready(item) for name, item in value.items()}
    return [_ready(item) for item in value] if isinstance(value, list | tuple) else value
