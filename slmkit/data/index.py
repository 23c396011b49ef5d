"""What a corpus of shards holds, known without opening a tar.

Beside each tar stands an index (columnar JSON: key, frames, text length, byte offset and size of each member's
content), written last: a shard exists if its index does. It also carries the shard's part of the ledger, so that both
appear at once, and what was measured of each utterance, so that odd ones are found without a tar. `manifest.json` is
written when every shard is there; a directory without it is not a corpus yet. The manifest alone numbers the samples,
so a corpus of ten thousand shards opens at once.

It knows nothing of tar files, audio or codecs beyond their `CodecSpec`.

Invariant: samples are numbered through the shards in order, so sample i is the same one on every machine.

Example:
    corpus = Corpus.open("shards/libritts")
    len(corpus), corpus.seconds, corpus.key(0)
"""

import functools
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from slmkit.codec.base import CodecSpec
from slmkit.data.ledger import Failure
from slmkit.errors import UserError
from slmkit.files import atomic_write, read_json, write_json
from slmkit.texts import excerpt

MANIFEST = "manifest.json"
INDEX_SUFFIX = ".index.json"
AGAIN = f"restore it, or remove {MANIFEST} and what is left of the shard and run the job again"
MOST_BYTES = 2**50  # that a tar may have: sums of offset and size are exact and far from overflow
BYTES_PER_CODE = 2
OPEN_INDEXES = 256  # that a process keeps in memory, each about 0.1 MB for 1000 samples
MAX_SAMPLES, MAX_NAME_BYTES = 10**9, 200  # of a shard, of the name of its tar


def shard_name(corpus: str, shard: int) -> str:
    """File name of a tar, e.g. "libritts-000042.tar"."""
    return f"{corpus}-{shard:06d}.tar"


def index_path(directory: str | Path, tar: str) -> Path:
    """Where the index of `tar` stands."""
    return Path(directory) / (tar.removesuffix(".tar") + INDEX_SUFFIX)


class ShardSummary(NamedTuple):
    """What the manifest says of a shard, and what it adds to the counts."""

    tar: str
    sha256: str
    samples: int
    seconds: float
    frames: int
    failures: Mapping[str, int]  # reason -> count


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """One tar with n samples. `offsets` and `sizes` map a member's suffix ("codes.npy") to int64 [n], in bytes."""

    tar: str  # file name, without a directory
    sha256: str
    seconds: float  # of speech in all
    keys: tuple[str, ...]  # as the corpus names its utterances, not escaped
    frames: np.ndarray  # int32 [n]
    text_chars: np.ndarray  # int32 [n]
    offsets: dict[str, np.ndarray]
    sizes: dict[str, np.ndarray]
    failures: tuple[Failure, ...] = ()
    crc32: np.ndarray | None = None  # uint32 [n]: of the members' contents by sorted suffix; old indexes have none
    checks: dict[str, np.ndarray] = field(default_factory=dict)  # name -> float32 [n], NaN where a sample has no value
    plan_sha256: str = ""  # of the lines of the plan that the shard was made from, "" when there was none

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def summary(self) -> ShardSummary:
        """The few numbers that outlive the index when there are ten thousand of them."""
        reasons = Counter(failure.reason for failure in self.failures)
        return ShardSummary(self.tar, self.sha256, len(self), self.seconds, int(self.frames.sum()), reasons)

    def to_dict(self) -> dict[str, Any]:
        """Plain values with sorted keys."""
        optional: dict[str, Any] = {} if self.crc32 is None else {"crc32": self.crc32.tolist()}
        if self.checks:
            optional["checks"] = {name: _short_floats(column) for name, column in sorted(self.checks.items())}
        if self.plan_sha256:
            optional["plan_sha256"] = self.plan_sha256
        return {
            **optional,
            "failures": [failure._asdict() for failure in self.failures],
            "frames": self.frames.tolist(),
            "keys": list(self.keys),
            "offsets": {suffix: column.tolist() for suffix, column in sorted(self.offsets.items())},
            "samples": len(self),
            "seconds": self.seconds,
            "sha256": self.sha256,
            "sizes": {suffix: column.tolist() for suffix, column in sorted(self.sizes.items())},
            "tar": self.tar,
            "text_chars": self.text_chars.tolist(),
        }

    def write(self, path: str | Path, *, replace: bool = False) -> None:
        """Write as JSON, whole or not at all. Raises UserError if `path` exists, unless `replace` is set."""
        with atomic_write(path, replace=replace) as file:  # without indentation: half the bytes, read in half the time
            file.write(json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False).encode() + b"\n")

    @staticmethod
    def read(path: str | Path) -> "ShardIndex":
        """Inverse of `write`. Raises UserError naming the file when it is not an index."""
        values = read_json(path)
        try:
            index = _from_dict(values)
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise UserError(
                f"{path} is not the index of a shard: {excerpt(repr(error), 300)}",
                next_step="remove it and run the job again",
            ) from error
        return index


def _from_dict(values: dict[str, Any]) -> ShardIndex:
    index = ShardIndex(
        tar=str(values["tar"]),
        sha256=str(values["sha256"]),
        seconds=float(values["seconds"]),
        keys=tuple(str(key) for key in values["keys"]),
        frames=np.array(values["frames"], dtype=np.int32),
        text_chars=np.array(values["text_chars"], dtype=np.int32),
        offsets={str(name): np.array(column, dtype=np.int64) for name, column in values["offsets"].items()},
        sizes={str(name): np.array(column, dtype=np.int64) for name, column in values["sizes"].items()},
        failures=tuple(Failure(**failure) for failure in values["failures"]),
        crc32=None if values.get("crc32") is None else np.array(values["crc32"], dtype=np.uint32),
        checks={str(name): _floats(column) for name, column in values.get("checks", {}).items()},
        plan_sha256=str(values.get("plan_sha256", "")),
    )
    if Path(index.tar).name != index.tar:
        raise ValueError(f"{index.tar!r} is not a file name")
    if not {"codes.npy", "json"} <= index.offsets.keys() or index.offsets.keys() != index.sizes.keys():
        raise ValueError(f"members {sorted(index.offsets)} with sizes of {sorted(index.sizes)}")
    crc32 = () if index.crc32 is None else (index.crc32,)
    for column in (index.frames, index.text_chars, *index.offsets.values(), *index.sizes.values(), *crc32):
        if column.shape != (len(index),) or (column < 0).any():
            raise ValueError(f"a column does not hold {len(index)} numbers from 0")
    for column in (*index.offsets.values(), *index.sizes.values()):
        if (column > MOST_BYTES).any():
            raise ValueError(f"a member lies beyond {MOST_BYTES} bytes")
    if (index.sizes["codes.npy"] < BYTES_PER_CODE * index.frames.astype(np.int64)).any():
        raise ValueError("a member is too small for its frames")
    if (index.sizes["json"] < index.text_chars).any():
        raise ValueError("a member is too small for its text")
    if not 0 <= index.seconds < math.inf:
        raise ValueError(f"{index.seconds} seconds of speech")
    for name, column in index.checks.items():
        if column.shape != (len(index),) or np.isinf(column).any():
            raise ValueError(f"the check {name!r} does not hold {len(index)} numbers")
    return index


def _floats(column: list[float | None]) -> np.ndarray:
    """float32; None becomes NaN, and what is too large becomes infinite."""
    with np.errstate(over="ignore"):
        return np.array(column, dtype=np.float32)


def _short_floats(column: np.ndarray) -> list[float | None]:
    """Inverse of `_floats`: the shortest numbers that read back as the same (0.1, not 0.10000000149)."""
    return [None if text == "nan" else float(text) for text in column.astype(str)]


class ShardList:
    """The indexes of a corpus, read and checked when they are asked for; the last few are kept. Can be pickled."""

    def __init__(self, directory: Path, listed: Sequence[tuple[str, str, int]]) -> None:
        """`listed` are the file name, sha256 and number of samples of every tar."""
        self.directory, self.listed = directory, tuple(listed)
        self._open = functools.lru_cache(maxsize=OPEN_INDEXES)(_open_index)

    def __reduce__(self) -> tuple[Any, ...]:
        return ShardList, (self.directory, self.listed)

    def __len__(self) -> int:
        return len(self.listed)

    def __getitem__(self, shard: int) -> ShardIndex:
        """Raises UserError when the index is missing or damaged."""
        return self._open(self.directory, *self.listed[shard])

    def __iter__(self) -> Iterator[ShardIndex]:
        return map(self.__getitem__, range(len(self)))


@dataclass(frozen=True, eq=False)
class Corpus:
    """All shards of a finished corpus, in order. What needs an index reads it then, so that opening takes no time."""

    directory: Path
    codec: CodecSpec
    shards: ShardList
    starts: np.ndarray  # int64 [shards + 1]: number of the first sample of each shard, then the number of all
    seconds: float  # speech in all shards
    failures: Mapping[str, int]  # items of the source that gave no sample, by reason
    outliers: Mapping[str, int]  # utterances that stand out, by check
    codec_source: str = ""  # where the codec was: a path, or a hub id with its commit; "" where it is not known

    @staticmethod
    def open(directory: str | Path) -> "Corpus":
        """Read the manifest alone. Raises UserError when the corpus is missing or not finished.

        An index that is missing or damaged is found when it is first used. The tars are looked at by `check` and when
        samples are read; they may lie elsewhere (`data.remote`).
        """
        directory = Path(directory)
        path = directory / MANIFEST
        if not os.path.isfile(path):
            raise UserError(
                f"{directory} holds no finished corpus: {MANIFEST} is missing",
                next_step="give the directory that `slmkit tokenize` or `slmkit import` wrote, or let that job finish",
            )
        manifest = read_json(path)
        try:
            codec = CodecSpec.from_dict(manifest["codec"])
            listed = [(str(s["tar"]), str(s["sha256"]), int(s["samples"])) for s in manifest["shards"]]
            seconds, codec_source = float(manifest["counts"]["seconds"]), str(manifest.get("codec_source", ""))
            failures, outliers = (_counts(manifest.get(name, {})) for name in ("failures", "outliers"))
            if not math.isfinite(seconds):
                raise ValueError(f"the corpus lasts {seconds} s")
            if any(not 0 <= samples < MAX_SAMPLES for _, _, samples in listed):
                raise ValueError("a shard has an impossible number of samples")
            if wrong := [tar for tar, _, _ in listed if Path(tar).name != tar or len(tar.encode()) > MAX_NAME_BYTES]:
                raise ValueError(f"{wrong[0]!r:.100} is not the name of a tar")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{path} is not the manifest of a corpus: {excerpt(repr(error), 300)}") from error
        starts = np.cumsum([0, *(samples for _, _, samples in listed)], dtype=np.int64)
        return Corpus(directory, codec, ShardList(directory, listed), starts, seconds, failures, outliers, codec_source)

    def check(self, *, with_tars: bool = True) -> None:
        """Read every index and look at its tar, if it lies beside. Raises UserError for the first that is not whole."""
        for index in self.shards:
            if with_tars:
                _check_tar(self.directory, index)

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.starts[-1])

    def locate(self, i: int) -> tuple[int, int]:
        """Shard number and row of sample `i`. Raises IndexError outside 0 .. len - 1."""
        if not 0 <= i < len(self):
            raise IndexError(f"sample {i} of {len(self)}")
        shard = int(np.searchsorted(self.starts, i, side="right")) - 1
        return shard, i - int(self.starts[shard])

    def key(self, i: int) -> str:
        """Key of sample `i`."""
        shard, row = self.locate(i)
        return self.shards[shard].keys[row]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the codec and every shard's content: equal for equal data, wherever it lies."""
        parts = [self.codec.sha256, *(sha256 for _, sha256, _ in self.shards.listed)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _counts(values: Any) -> dict[str, int]:
    """Counts by name. Raises TypeError or ValueError when they are something else."""
    if not isinstance(values, dict) or not all(type(count) is int for count in values.values()):
        raise TypeError(f"{values!r:.100} are not counts by name")
    if any(not 0 <= count < MAX_SAMPLES for count in values.values()):
        raise ValueError("a count is impossible")
    return values


def _open_index(directory: Path, tar: str, sha256: str, samples: int) -> ShardIndex:
    """The index of a tar, which need not lie beside it."""
    path = index_path(directory, tar)
    if not os.path.isfile(path):
        raise UserError(f"{directory} lacks {path.name}", next_step=AGAIN)
    index = ShardIndex.read(path)
    if (index.tar, index.sha256, len(index)) != (tar, sha256, samples):
        raise UserError(
            f"{path} is not the index that {MANIFEST} lists",
            got=f"{index.tar}, sha256 {index.sha256}, {len(index)} samples",
            expected=f"{tar}, sha256 {sha256}, {samples} samples",
            next_step=AGAIN,
        )
    return index


def _check_tar(directory: Path, index: ShardIndex) -> None:
    path = directory / index.tar
    if not os.path.isfile(path):
        raise UserError(f"{directory} lacks {index.tar}", next_step=AGAIN)
    end_bytes = max((int((index.offsets[m] + index.sizes[m]).max()) for m in index.offsets if len(index)), default=0)
    size_bytes = path.stat().st_size
    if size_bytes < end_bytes:
        raise UserError(
            f"{path} is cut short",
            got=f"{size_bytes} bytes",
            expected=f"at least {end_bytes} bytes, sha256 {index.sha256}",
            next_step=AGAIN,
        )


def write_manifest(
    directory: str | Path,
    corpus: str,
    codec: CodecSpec,
    shards: Sequence[ShardSummary],
    made_by: dict[str, Any],
    *,
    codec_source: str = "",
    refused: Mapping[str, int] | None = None,
    outliers: Mapping[str, int] | None = None,
) -> None:
    """Write `manifest.json`, which makes `directory` a corpus. Replaces an older one.

    `made_by` is `files.provenance(...)` or as much of it as is known; `codec_source` says where the codec is;
    `refused` counts what was left out before encoding, by reason; `outliers` utterances that stand out, by check.
    Nothing in the manifest depends on the time. Raises UserError when the disk refuses.
    """
    reasons = Counter(refused or {})
    for shard in shards:
        reasons.update(shard.failures)
    samples = sum(shard.samples for shard in shards)
    manifest = {
        "corpus": corpus,
        "codec": codec.to_dict(),
        "weights_sha256": codec.weights_sha256,
        "codec_source": codec_source,
        "counts": {
            "utterances": samples + reasons.total(),
            "samples": samples,
            "failures": reasons.total(),
            "seconds": sum(shard.seconds for shard in shards),
            "frames": sum(shard.frames for shard in shards),
        },
        "failures": dict(sorted(reasons.items())),
        "outliers": dict(sorted((outliers or {}).items())),
        "shards": [{"tar": shard.tar, "sha256": shard.sha256, "samples": shard.samples} for shard in shards],
        "made_by": made_by,
    }
    write_json(Path(directory) / MANIFEST, manifest, replace=True)
