"""Options of `slmkit tokenize` and `slmkit import`.

`RUNTIME` names the options that do not change a byte of the shards: a job may go on with other values of them.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from slmkit.config.load import option, to_dict

CORPUS_NAME = re.compile(r"[A-Za-z0-9_-]+")
RUNTIME = (
    "codec",
    "out",
    "devices",
    "num_workers",
    "batch_sec",
    "window",
    "decode_limit_sec",
    "max_failure_share",
    "task",
    "num_tasks",
)


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Which utterances of the source are left out, by what the source says of them; each reason is counted."""

    min_dnsmos: float | None = option(
        None, help="utterances with a lower DNSMOS, or none, are left out (1 to 5); null keeps all"
    )
    languages: tuple[str, ...] = option((), help="utterances in other languages are left out; [] keeps all")

    def __post_init__(self) -> None:
        wrong = self.min_dnsmos is not None and not 1 <= self.min_dnsmos <= 5
        _refuse({f"min_dnsmos: got {self.min_dnsmos}, expected 1 to 5": wrong})


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """Audio to shards of codes."""

    corpus: str = option(
        "speech", help="name of the corpus; shards are called {corpus}-000000.tar; letters, digits, _ -"
    )
    kind: str = option(
        "libritts", help="layout of the source, such as libritts, manifest or parquet; see the list of layouts"
    )
    source: str = option(help="the folder or the file")
    codec: str = option(help="directory of the codec")
    out: str = option(help="directory for the shards; new, empty, or of this same job")
    columns: dict[str, str] = option(
        factory=dict,
        help="manifest and parquet: our column -> theirs where they differ, such as path, audio, text, speaker, key",
    )
    language: str = option("", help="language of utterances for which the source gives none")
    filters: FilterConfig = option(factory=FilterConfig, help="what is left out")
    min_sec: float = option(0.1, help="shorter utterances go to the ledger (seconds)")
    max_sec: float = option(
        60.0, help="longer utterances go to the ledger; recordings with time stamps are cut to this (seconds)"
    )
    shard_samples: int = option(1000, help="items of the source per shard (utterances, bad ones included)")
    devices: tuple[str, ...] = option(
        ("cpu",),
        help="where the codec runs, one process for each: [cpu], [cuda:0, cuda:1], or [cpu, cpu] for two processes",
    )
    num_workers: int = option(
        2, help="processes that decode audio for each device, or read the source to plan; 0 does it all in one"
    )
    batch_sec: float = option(120.0, help="audio per codec batch, padding included (seconds)")
    window: int = option(256, help="utterances decoded ahead and sorted by length into batches")
    decode_limit_sec: float = option(120.0, help="a decoding process that takes longer for one file is ended (seconds)")
    max_failure_share: float = option(
        0.05, help="the job ends with an error when a larger share of items failed (0 to 1)"
    )
    task: int = option(0, help="number of this task among num_tasks, which share the shards between them")
    num_tasks: int = option(1, help="tasks working on this job, each started with its own number")

    def __post_init__(self) -> None:
        _refuse(
            _common_problems(self.corpus, self.shard_samples, self.max_failure_share)
            | {
                f"min_sec: got {self.min_sec}, expected 0 <= min_sec < max_sec": not 0 <= self.min_sec < self.max_sec,
                f"num_workers: got {self.num_workers}, expected 0 or more": self.num_workers < 0,
                f"batch_sec: got {self.batch_sec}, expected more than 0": not self.batch_sec > 0,
                f"window: got {self.window}, expected 1 or more": self.window < 1,
                f"decode_limit_sec: got {self.decode_limit_sec}, expected more than 0": not self.decode_limit_sec > 0,
                f"devices: got {list(self.devices)}, expected at least one": not self.devices,
                f"task: got {self.task} of {self.num_tasks}, expected 0 <= task < num_tasks": not (
                    0 <= self.task < self.num_tasks
                ),
            }
        )

    def settings(self) -> dict[str, Any]:
        """The options that decide the shards' bytes, as plain values."""
        kept = {name: value for name, value in to_dict(self).items() if name not in RUNTIME}
        return json.loads(json.dumps(kept))


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """Published codes to shards."""

    corpus: str = option(help="name of the corpus")
    source: tuple[str, ...] = option(help="JSONL files")
    out: str = option(help="directory for the shards; new, empty, or of this same job")
    shard_samples: int = option(1000, help="records per shard, bad ones included")
    max_failure_share: float = option(0.05, help="the job ends with an error when a larger share failed (0 to 1)")

    def __post_init__(self) -> None:
        _refuse(_common_problems(self.corpus, self.shard_samples, self.max_failure_share))

    def settings(self) -> dict[str, Any]:
        """The options that decide the shards' bytes."""
        kept = {name: value for name, value in to_dict(self).items() if name not in RUNTIME}
        return {**kept, "kind": "published", "source": list(self.source)}


def _common_problems(corpus: str, shard_samples: int, max_failure_share: float) -> dict[str, bool]:
    """Problem -> whether it is there."""
    return {
        f"corpus: got {corpus!r}, expected letters, digits, _ and -": not CORPUS_NAME.fullmatch(corpus),
        f"shard_samples: got {shard_samples}, expected 1 or more": shard_samples < 1,
        f"max_failure_share: got {max_failure_share}, expected 0 to 1": not 0 <= max_failure_share <= 1,
    }


def _refuse(problems: dict[str, bool]) -> None:
    found = [problem for problem, there in problems.items() if there]
    if found:
        raise ValueError("\n".join(found))
