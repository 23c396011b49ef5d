"""Options of `slmkit tokenize` and `slmkit import`.

`RUNTIME` names the options that do not change a byte of the shards: a job may go on with other values of them.
"""

import json
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MinLen
from pydantic import Field, StringConstraints

from slmkit.config.load import Config, to_dict
from slmkit.config.values import (
    Count,
    Flag,
    Name,
    Natural,
    Number,
    PathText,
    Seconds,
    SecondsOrZero,
    Share,
    Takes,
    Text,
    Workers,
)

CORPUS_NAME = re.compile(r"[A-Za-z0-9_-]+")
CorpusName = Annotated[
    str,
    StringConstraints(strict=True, pattern=rf"^{CORPUS_NAME.pattern}$", max_length=200),
    Takes("letters, digits, _ and -"),
]
Devices = Annotated[tuple[Name, ...], MinLen(1), Takes("a list of at least one device, such as [cpu]")]
Dnsmos = Annotated[Number, Ge(1), Le(5)]
Measured = tuple[Literal["dnsmos", "speech_share"], ...]
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


class FilterConfig(Config):
    """Which utterances are left out, by what the source says about them or `measure` finds; each reason is counted."""

    min_dnsmos: Dnsmos | None = Field(
        default=None, description="utterances with a lower DNSMOS, or none, are left out; null keeps all"
    )
    min_speech_share: Share | None = Field(
        default=None,
        description="utterances of which a smaller share is speech, or none is known, are left out; null keeps all",
    )
    languages: tuple[Name, ...] = Field(
        default=(), description="utterances in other languages are left out; [] keeps all"
    )
    sources: tuple[Name, ...] = Field(
        default=(),
        description="patterns of paths in the source, such as Emilia/*; utterances from elsewhere are left out; [] "
        "keeps all",
    )


class TokenizeConfig(Config):
    """Audio to shards of codes."""

    corpus: CorpusName = Field(
        default="speech", description="name of the corpus; shards are called {corpus}-000000.tar"
    )
    kind: Name = Field(
        default="libritts",
        description="layout of the source, such as libritts, manifest or parquet; see the list of layouts",
    )
    source: PathText = Field(description="folder or file with the audio")
    codec: PathText = Field(description="codec: a directory or a hub id")
    out: PathText = Field(description="directory for the shards; new, empty, or of this same job")
    columns: dict[str, Name] = Field(
        default={},
        description="manifest and parquet: slmkit's column -> the source's, where they differ (path, audio, text, "
        "speaker, key, ...)",
    )
    language: Text = Field(default="", description="language of utterances for which the source gives none")
    measure: Measured = Field(
        default=(),
        description="columns that are measured and kept with the sample where the source does not bring them: dnsmos "
        "(quality from 1 to 5), speech_share (0 to 1); needs the extra slmkit[measure]",
    )
    remeasure: Flag = Field(
        default=False,
        description="measure also where the source brings the column, which is kept as source_dnsmos or "
        "source_speech_share",
    )
    filters: FilterConfig = Field(default=FilterConfig(), description="what is left out")
    min_sec: SecondsOrZero = Field(default=0.1, description="shorter utterances go to the ledger")
    max_sec: Seconds = Field(
        default=60.0,
        description="longer utterances go to the ledger; long recordings with time stamps are cut to pieces of this",
    )
    shard_samples: Count = Field(
        default=1000, description="items of the source per shard (utterances, bad ones included)"
    )
    devices: Devices = Field(
        default=("cpu",),
        description="where the codec runs, one process for each: [cpu], [cuda:0, cuda:1], or [cpu, cpu] for two "
        "processes",
    )
    num_workers: Workers = Field(
        default=2,
        description="processes that decode audio for each device, or read the source to plan; 0 does it all in one",
    )
    batch_sec: Seconds = Field(default=120.0, description="audio per codec batch, padding included")
    window: Count = Field(default=256, description="utterances decoded ahead and sorted by length into batches")
    decode_limit_sec: Seconds = Field(
        default=120.0, description="a process that takes longer to decode and measure one file is ended"
    )
    max_failure_share: Share = Field(
        default=0.05,
        description="the job ends with an error when a larger share of items failed: before anything is encoded where "
        "the source alone tells",
    )
    task: Natural = Field(
        default=0, description="number of this task among num_tasks, which share the shards between them"
    )
    num_tasks: Count = Field(default=1, description="tasks working on this job, each started with its own number")

    def clashes(self) -> Iterable[tuple[bool, str]]:
        yield (
            self.min_sec >= self.max_sec,
            f"min_sec, max_sec: got {self.min_sec} and {self.max_sec}, expected min_sec below max_sec",
        )
        yield (
            self.task >= self.num_tasks,
            f"task, num_tasks: got {self.task} of {self.num_tasks}, expected 0 <= task < num_tasks",
        )
        yield (
            self.remeasure and not self.measure,
            "remeasure, measure: got remeasure alone, expected what to measure",
        )

    def settings(self) -> dict[str, Any]:
        """The options that decide the shards' bytes, as plain values."""
        kept = {name: value for name, value in to_dict(self).items() if name not in RUNTIME}
        return json.loads(json.dumps(kept | {"measure": sorted(set(self.measure))}))  # its order decides nothing


class ImportConfig(Config):
    """Published codes to shards."""

    corpus: CorpusName = Field(description="name of the corpus")
    source: tuple[PathText, ...] = Field(description="JSONL files")
    out: PathText = Field(description="directory for the shards; new, empty, or of this same job")
    shard_samples: Count = Field(default=1000, description="records per shard, bad ones included")
    max_failure_share: Share = Field(default=0.05, description="the job ends with an error when a larger share failed")

    def settings(self) -> dict[str, Any]:
        """The options that decide the shards' bytes."""
        kept = {name: value for name, value in to_dict(self).items() if name not in RUNTIME}
        return {**kept, "kind": "published", "source": list(self.source)}
