"""Shards: tars of encoded utterances that webdataset reads, written with fixed bytes and read at random by offset.

A sample is `{name}.codes.npy` (uint16 [K, T]; int16 where slmkit 0.5 or before wrote it), `{name}.json` and, where the
codec has one, `{name}.speaker.npy` (float32 [D]); `name` is the key, escaped. Prompts and groups are not baked in.
`webdataset.WebDataset(url).decode()` alone reads them too.

Shapes: K streams, T frames, D speaker width.

Invariants: equal samples in equal order give byte-identical tars. No pickle is ever loaded: array members are parsed
by the shape and type the index and the codec promise, and anything else is refused. What the index has a checksum for
is never handed out changed.

Example:
    writer = ShardWriter("shards/libritts", "libritts", 0)
    writer.add(Sample("19_198_000000_000000", codes, speaker, {"text": "Chapter one.", "seconds": 1.2}))
    writer.commit()
    ShardReader(Corpus.open("shards/libritts")).read(0)      # once the manifest is written
"""

import functools
import hashlib
import io
import json
import math
import os
import tarfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import numpy as np
import webdataset

from slmkit.codec.base import Codes
from slmkit.data.index import Corpus, ShardIndex, index_path, shard_name
from slmkit.data.ledger import Failure
from slmkit.data.remote import DamagedTar, ShardCache, is_url, join
from slmkit.errors import DamagedSample, UserError
from slmkit.files import atomic_write

CODES, SPEAKER, META = "codes.npy", "speaker.npy", "json"
CODES_DTYPE, SPEAKER_DTYPE = np.dtype("<u2"), np.dtype("<f4")
OLD_CODES_DTYPE = np.dtype("<i2")  # of shards that slmkit 0.5 and before wrote
NPY_MAGIC = b"\x93NUMPY\x01\x00"  # version 1.0; two bytes of header length follow
NPY_PREFIX_BYTES = 10
HEADER_SHOWN = 100  # characters of a foreign header that an error shows
OWNER = "slmkit"
MODE = 0o644
READ_ERRORS = (OSError, ValueError, RecursionError)  # what reading and parsing a damaged sample raises
SECONDS_DIGITS = 3  # of the seconds among the checks: milliseconds
OPEN_TARS = 64  # file handles a reader keeps; a corpus may have more shards than a process may open files
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Sample:
    """One encoded utterance. `meta` has text, speaker, language, seconds, source, any extra columns, and `checks` (name
    -> number) where something was measured.

    A sample of text alone, which no shard holds, has codes of shape [0, 0].
    """

    key: str
    codes: Codes  # [K, T]
    speaker: np.ndarray | None  # float32 [D]
    meta: dict[str, Any]


def escape_key(key: str) -> str:
    """A file name for `key` without dots, slashes and spaces (webdataset splits names at the first dot).

    Injective: `urllib.parse.unquote` gives the key back. Letters, digits, `_`, `-` and `~` stay.
    Raises ValueError when the key is empty or not valid Unicode.
    """
    if not key:
        raise ValueError("the key of a sample is empty")
    return quote(key, safe="").replace(".", "%2E")


class ShardWriter:
    """Collects the samples of one shard in memory; `commit` makes tar and index appear, the index last."""

    def __init__(self, directory: str | Path, corpus_name: str, shard_number: int) -> None:
        self.directory = Path(directory)
        self.tar = shard_name(corpus_name, shard_number)
        self._buffer = io.BytesIO()
        self._writer = webdataset.TarWriter(
            self._buffer, user=OWNER, group=OWNER, mode=MODE, mtime=0, encoder=False, compress=False
        )
        self._keys: list[str] = []
        self._frames: list[int] = []
        self._text_chars: list[int] = []
        self._seconds: list[float] = []
        self._checks: list[dict[str, float]] = []
        self._crc32: list[int] = []
        self._suffixes: set[str] = set()

    def add(self, sample: Sample) -> None:
        """Append a sample. Raises ValueError when it is not as `Sample` says, or has other members than the first."""
        if sample.codes.dtype != CODES_DTYPE or sample.codes.ndim != 2:
            raise ValueError(f"codes must be uint16 [K, T], got {sample.codes.dtype} {list(sample.codes.shape)}")
        meta = json.dumps({**sample.meta, "key": sample.key}, sort_keys=True, ensure_ascii=False, allow_nan=False)
        checks = sample.meta.get("checks", {})
        if not isinstance(checks, dict) or not all(type(value) in (int, float) for value in checks.values()):
            raise ValueError(f"{sample.key}: the checks must map names to numbers, got {checks!r}")
        members = {CODES: _npy(sample.codes, CODES_DTYPE), META: meta.encode()}
        if sample.speaker is not None:
            members[SPEAKER] = _npy(sample.speaker, SPEAKER_DTYPE)
        if self._keys and members.keys() != self._suffixes:
            raise ValueError(
                f"{sample.key}: members {sorted(members)}, the samples before have {sorted(self._suffixes)}"
            )
        self._suffixes = set(members)
        self._writer.write({"__key__": escape_key(sample.key), **members})
        self._keys.append(sample.key)
        self._frames.append(sample.codes.shape[1])
        self._text_chars.append(len(sample.meta["text"]))
        self._seconds.append(float(sample.meta["seconds"]))
        self._checks.append(checks)
        self._crc32.append(_checksum(members))

    def commit(self, failures: Sequence[Failure] = (), plan_sha256: str = "") -> ShardIndex:
        """Write the tar, then the index with the shard's `failures` and checks; where samples have checks, their
        `seconds` become one. `plan_sha256` is of the lines of the plan that the shard was made from.

        A finished shard of the same content is left as it is. Raises UserError when it is of another content, or the
        disk refuses.
        """
        self._writer.close()
        content = self._buffer.getvalue()
        offsets, sizes = _member_places(content, len(self._keys))
        index = ShardIndex(
            tar=self.tar,
            sha256=hashlib.sha256(content).hexdigest(),
            seconds=math.fsum(self._seconds),
            keys=tuple(self._keys),
            frames=np.array(self._frames, dtype=np.int32),
            text_chars=np.array(self._text_chars, dtype=np.int32),
            offsets=offsets,
            sizes=sizes,
            failures=tuple(failures),
            crc32=np.array(self._crc32, dtype=np.uint32),
            checks=self._check_columns(),
            plan_sha256=plan_sha256,
        )
        path = index_path(self.directory, self.tar)
        if path.exists():
            found = ShardIndex.read(path).sha256
            if found == index.sha256:  # another process was faster
                return index
            raise UserError(
                f"{path} exists with other content",
                got=f"sha256 {found}",
                expected=f"sha256 {index.sha256}",
                next_step="remove the index to write the shard anew, or choose another directory",
            )
        with atomic_write(self.directory / self.tar, replace=True) as file:  # without its index it was never finished
            file.write(content)
        index.write(path, replace=True)
        return index

    def _check_columns(self) -> dict[str, np.ndarray]:
        names = {name for checks in self._checks for name in checks}
        columns = {name: [checks.get(name, math.nan) for checks in self._checks] for name in names}
        if columns:
            columns["seconds"] = [round(seconds, SECONDS_DIGITS) for seconds in self._seconds]
        return {name: np.array(column, dtype=np.float32) for name, column in sorted(columns.items())}


def _checksum(members: dict[str, bytes]) -> int:
    """CRC-32 of the contents, one after the other by sorted suffix."""
    crc32 = 0
    for suffix in sorted(members):
        crc32 = zlib.crc32(members[suffix], crc32)
    return crc32


def _npy(array: np.ndarray, dtype: np.dtype) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(array, dtype=dtype), version=(1, 0), allow_pickle=False)
    return buffer.getvalue()


def _member_places(tar: bytes, num_samples: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Offsets and sizes of the members' content, suffix -> int64 [num_samples], read back from the tar itself."""
    offsets: dict[str, list[int]] = {CODES: [], META: []}
    sizes: dict[str, list[int]] = {CODES: [], META: []}
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        for member in archive:
            _, _, suffix = member.name.partition(".")
            offsets.setdefault(suffix, []).append(member.offset_data)
            sizes.setdefault(suffix, []).append(member.size)
    assert all(len(column) == num_samples for column in offsets.values())
    return _columns(offsets), _columns(sizes)


def _columns(lists: dict[str, list[int]]) -> dict[str, np.ndarray]:
    return {suffix: np.array(values, dtype=np.int64) for suffix, values in lists.items()}


class ShardReader:
    """Random access to the samples of a corpus. Safe to fork, to pickle (reopens its files) and to use from threads.

    Every read compares the sample with the checksum in the index; an index without checksums (of an older slmkit) is
    read unchecked, but for the form of its members. `tars` is the directory or URL of the tars where they do not lie
    beside the indexes. With a `cache`, tars are copied to it before they are read.
    """

    def __init__(self, corpus: Corpus, *, tars: str | Path | None = None, cache: ShardCache | None = None) -> None:
        """Raises UserError for a URL without a cache."""
        self.corpus, self.cache = corpus, cache
        self.tars = str(corpus.directory if tars is None else tars)
        if is_url(self.tars) and cache is None:
            raise UserError(
                "shards at a URL are read through a shard cache, and there is none",
                got=self.tars,
                next_step="set data.shard_cache to a directory on a fast disk",
            )
        self._sizes = np.array([[stream.size] for stream in corpus.codec.streams])
        self._open_kept = functools.lru_cache(maxsize=OPEN_TARS)(lambda path: _OpenTar(os.open(path, os.O_RDONLY)))

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(ShardReader, self.corpus, tars=self.tars, cache=self.cache), ()

    def read(self, i: int) -> Sample:
        """Sample number `i` of the corpus. Raises DamagedSample naming tar, key and expected sha256."""
        return self._read(i, self._parse)

    def read_meta(self, i: int) -> dict[str, Any]:
        """Only the json of sample `i`, checked with the whole sample. Raises DamagedSample like `read`."""
        return self._read(i, lambda index, row, members: _parse_meta(members[META], index.keys[row]))

    def _read(self, i: int, parse: Callable[[ShardIndex, int, dict[str, bytes]], T]) -> T:
        shard, row = self.corpus.locate(i)
        index = self.corpus.shards[shard]
        try:
            try:
                return parse(index, row, self._members(index, row))
            except READ_ERRORS:
                # The open file, or the copy in the cache, may have suffered, and not the tar itself.
                self._open_kept.cache_clear()
                if self.cache is not None and not self.cache.discard_damaged(index.sha256):
                    raise
                return parse(index, row, self._members(index, row))
        except (*READ_ERRORS, DamagedTar) as error:
            raise self._damaged(index, row, error) from error

    def _members(self, index: ShardIndex, row: int) -> dict[str, bytes]:
        """Contents of the members of a sample, in one read: they lie side by side. Raises ValueError if changed."""
        places = {m: (int(index.offsets[m][row]), int(index.sizes[m][row])) for m in index.offsets}
        start = min(offset for offset, _ in places.values())
        end = max(offset + size for offset, size in places.values())
        tar = self._open(index)
        tar_bytes = os.fstat(tar.handle).st_size
        if end > tar_bytes:  # before memory is asked for what a damaged index says
            raise ValueError(f"the tar ends {end - tar_bytes} bytes too early")
        content = os.pread(tar.handle, end - start, start)
        members = {m: content[offset - start : offset - start + size] for m, (offset, size) in places.items()}
        if index.crc32 is not None and (found := _checksum(members)) != index.crc32[row]:
            raise ValueError(f"its bytes have changed: CRC-32 {found:08x}, expected {int(index.crc32[row]):08x}")
        return members

    def _open(self, index: ShardIndex) -> "_OpenTar":
        """The tar, kept open; or its copy in the cache, which must not be: the cache could not free its space."""
        place = join(self.tars, index.tar)
        return self._open_kept(place) if self.cache is None else _OpenTar(self.cache.open(place, index.sha256))

    def _parse(self, index: ShardIndex, row: int, members: dict[str, bytes]) -> Sample:
        codec, key = self.corpus.codec, index.keys[row]
        shape = (len(codec.streams), int(index.frames[row]))
        codes = _parse_npy(members[CODES], (CODES_DTYPE, OLD_CODES_DTYPE), shape)
        if (codes < 0).any() or (codes >= self._sizes).any():
            raise ValueError("a code lies outside its codebook")
        codes = codes.astype(CODES_DTYPE)
        speaker = None
        if codec.speaker_dim:
            if SPEAKER not in members:
                raise ValueError(f"the speaker vector of width {codec.speaker_dim} is missing")
            speaker = _parse_npy(members[SPEAKER], (SPEAKER_DTYPE,), (codec.speaker_dim,))
        return Sample(key, codes, speaker, _parse_meta(members[META], key))

    def _damaged(self, index: ShardIndex, row: int, error: Exception) -> DamagedSample:
        path, key = join(self.tars, index.tar), index.keys[row]
        return DamagedSample(
            key,
            path,
            f"{path}: sample {key!r} cannot be read: {error.what if isinstance(error, UserError) else error}",
            got=error.got if isinstance(error, UserError) else None,
            expected=f"a tar with sha256 {index.sha256}",
            next_step=f"run `sha256sum {path}`; if it differs, restore the tar from a copy or make the shard again",
        )


class _OpenTar:
    """A file handle that closes when its last user lets go."""

    def __init__(self, handle: int) -> None:
        self.handle = handle

    def __del__(self) -> None:
        os.close(self.handle)


def _parse_npy(content: bytes, dtypes: Sequence[np.dtype], shape: tuple[int, ...]) -> np.ndarray:
    """The array in `content`, which must be an npy file of one of these types and of this shape.

    Raises ValueError otherwise.
    """
    header_bytes = int.from_bytes(content[8:NPY_PREFIX_BYTES], "little")
    data = content[NPY_PREFIX_BYTES + header_bytes :]
    header = content[NPY_PREFIX_BYTES : NPY_PREFIX_BYTES + header_bytes].decode("latin-1").rstrip()
    headers = {f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {shape}, }}": dtype for dtype in dtypes}
    if not content.startswith(NPY_MAGIC) or header not in headers:
        raise ValueError(f"an array with header {header[:HEADER_SHOWN]!r}, expected {next(iter(headers))!r}")
    dtype = headers[header]
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{len(data)} bytes of array data, expected {math.prod(shape) * dtype.itemsize}")
    return np.frombuffer(data, dtype=dtype).reshape(shape).copy()


def _parse_meta(content: bytes, key: str) -> dict[str, Any]:
    meta = json.loads(content.decode())
    if not isinstance(meta, dict) or meta.pop("key", None) != key:
        raise ValueError("its json belongs to another sample")
    return meta
