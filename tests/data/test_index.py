"""Indexes and manifests: round trips, numbering, and every way a corpus can be incomplete or damaged."""

import json
import pickle
import re
import time

import numpy as np
import pytest

from slmkit.codec.base import CodecSpec, Stream
from slmkit.data.index import Corpus, ShardIndex, index_path, shard_name, write_manifest
from slmkit.data.ledger import Failure
from slmkit.data.shards import Sample, ShardWriter
from slmkit.errors import UserError

SPEC = CodecSpec(
    name="tiny",
    sample_rate=16000,
    hop_samples=200,
    streams=(Stream("one", 1024, "content"), Stream("two", 1024, "prosody")),
    speaker_dim=0,
    weights_sha256="",
)


def make_corpus(directory, samples_per_shard=(3, 0, 2)):
    """A corpus whose sample i has i + 1 frames and the text "x" * i."""
    number, shards = 0, []
    for shard, count in enumerate(samples_per_shard):
        writer = ShardWriter(directory, "tiny", shard)
        for _ in range(count):
            codes = np.full((2, number + 1), number, dtype=np.uint16)
            writer.add(Sample(f"utt {number}", codes, None, {"text": "x" * number, "seconds": 0.5}))
            number += 1
        shards.append(writer.commit([Failure(f"bad{shard}", "empty", "nothing in it")]))
    write_manifest(directory, "tiny", SPEC, [shard.summary for shard in shards], {"config": {}})
    return shards


def test_an_index_reads_back_as_it_was_written(tmp_path):
    written = make_corpus(tmp_path)[0]
    read = ShardIndex.read(index_path(tmp_path, "tiny-000000.tar"))
    assert read.to_dict() == written.to_dict()
    assert read.keys == ("utt 0", "utt 1", "utt 2")
    assert (read.frames.dtype, read.text_chars.dtype, read.offsets["json"].dtype) == (np.int32, np.int32, np.int64)
    assert read.failures == (Failure("bad0", "empty", "nothing in it"),)


def test_checks_and_the_hash_of_the_plan_come_back(tmp_path):
    """A check that a sample lacks is null in the file and NaN in the column; numbers are written as they were given."""
    writer = ShardWriter(tmp_path, "tiny", 0)
    for key, checks in (("a", {"dc": 0.1, "silence": 0.3333}), ("b", {"dc": -6.404e-05}), ("c", {})):
        codes = np.zeros((2, 1), np.uint16)
        writer.add(Sample(key, codes, None, {"text": "x", "seconds": 1.23456789, "checks": checks}))
    written = writer.commit(plan_sha256="ab" * 32)
    path = index_path(tmp_path, written.tar)
    stored = json.loads(path.read_text())
    assert stored["checks"] == {
        "dc": [0.1, -6.404e-05, None],
        "seconds": [1.235, 1.235, 1.235],
        "silence": [0.3333, None, None],
    }
    read = ShardIndex.read(path)
    assert read.to_dict() == written.to_dict() == stored
    assert read.plan_sha256 == "ab" * 32
    assert {name: column.dtype for name, column in read.checks.items()} == dict.fromkeys(stored["checks"], np.float32)
    np.testing.assert_array_equal(read.checks["silence"], np.array([0.3333, np.nan, np.nan], np.float32))


def test_an_index_of_an_older_version_has_no_checks(tmp_path):
    make_corpus(tmp_path)
    path = index_path(tmp_path, "tiny-000000.tar")
    assert not {"checks", "plan_sha256"} & json.loads(path.read_text()).keys()
    index = ShardIndex.read(path)
    assert (index.checks, index.plan_sha256) == ({}, "")


def test_an_index_of_a_thousand_samples_is_read_in_milliseconds(tmp_path):
    """Ten thousand of them are read when a corpus is finished. The limit leaves a busy machine three times the time."""
    writer, draw = ShardWriter(tmp_path, "tiny", 0), np.random.default_rng(0)
    names = ("clipped", "silence", "dc", "chars_per_sec", "frames_off", "seconds_off")
    for number in range(1000):
        checks = {name: float(f"{draw.uniform():.4g}") for name in names}
        meta = {"text": "x", "seconds": draw.uniform(1, 20), "checks": checks}
        writer.add(Sample(f"19_198_{number:06d}", np.zeros((2, 1), np.uint16), None, meta))
    path = index_path(tmp_path, writer.commit().tar)
    durations_sec = []
    for _ in range(20):
        start = time.process_time()
        ShardIndex.read(path)
        durations_sec.append(time.process_time() - start)
    assert min(durations_sec) < 0.012


def test_a_corpus_numbers_its_samples_through_the_shards(tmp_path):
    make_corpus(tmp_path)
    corpus = Corpus.open(tmp_path)
    assert len(corpus) == 5
    assert [corpus.locate(i) for i in range(5)] == [(0, 0), (0, 1), (0, 2), (2, 0), (2, 1)]
    assert [corpus.key(i) for i in range(5)] == [f"utt {i}" for i in range(5)]
    assert [shard.frames.tolist() for shard in corpus.shards] == [[1, 2, 3], [], [4, 5]]
    assert [shard.text_chars.tolist() for shard in corpus.shards] == [[0, 1, 2], [], [3, 4]]
    assert {shard.frames.dtype for shard in corpus.shards} == {np.dtype(np.int32)}
    assert corpus.seconds == 2.5
    assert corpus.codec == SPEC
    for outside in (-1, 5):
        with pytest.raises(IndexError, match=f"sample {outside} of 5"):
            corpus.locate(outside)


def test_the_manifest_counts_samples_and_failures(tmp_path):
    make_corpus(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["counts"] == {"utterances": 8, "samples": 5, "failures": 3, "seconds": 2.5, "frames": 15}
    assert manifest["failures"] == {"empty": 3}
    assert [shard["samples"] for shard in manifest["shards"]] == [3, 0, 2]


def test_the_fingerprint_follows_the_content_and_not_the_place(tmp_path):
    make_corpus(tmp_path / "a")
    make_corpus(tmp_path / "b")
    make_corpus(tmp_path / "c", (3, 0, 1))
    a, b, c = (Corpus.open(tmp_path / name).fingerprint for name in "abc")
    assert a == b
    assert a != c


def test_an_empty_corpus_opens(tmp_path):
    write_manifest(tmp_path, "tiny", SPEC, [], {})
    corpus = Corpus.open(tmp_path)
    assert (len(corpus), len(corpus.shards), corpus.seconds) == (0, 0, 0)


def test_a_corpus_without_a_manifest_is_refused(tmp_path):
    make_corpus(tmp_path)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"holds no finished corpus: manifest\.json is missing"):
        Corpus.open(tmp_path)


@pytest.mark.parametrize("name", ["tiny-000002.tar", "tiny-000002.index.json"])
def test_a_missing_file_is_named(tmp_path, name):
    make_corpus(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"lacks {name}"):
        Corpus.open(tmp_path).check()


def test_a_tar_that_is_cut_short_is_refused(tmp_path):
    make_corpus(tmp_path)
    tar = tmp_path / "tiny-000002.tar"
    tar.write_bytes(tar.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"tiny-000002\.tar is cut short[\s\S]*2000 bytes[\s\S]*sha256"):
        Corpus.open(tmp_path).check()


def test_an_index_of_another_run_is_refused(tmp_path):
    make_corpus(tmp_path)
    path = index_path(tmp_path, "tiny-000000.tar")
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "sha256": "0" * 64}))
    with pytest.raises(UserError, match=r"is not the index that manifest\.json lists"):
        Corpus.open(tmp_path).check()


@pytest.mark.parametrize("change", [{"samples": -1}, {"samples": "x"}, {"tar": "tiny-000000.tar"}])
def test_a_shard_without_a_number_of_samples_is_refused(tmp_path, change):
    make_corpus(tmp_path)
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "shards": [{"tar": "t", "sha256": "0", **change}]}))
    with pytest.raises(UserError, match="is not the manifest of a corpus"):
        Corpus.open(tmp_path)


def test_only_the_shards_in_use_are_read(tmp_path):
    make_corpus(tmp_path)
    (tmp_path / "tiny-000002.index.json").unlink()
    corpus = pickle.loads(pickle.dumps(Corpus.open(tmp_path)))
    assert (len(corpus), corpus.seconds, corpus.key(2)) == (5, 2.5, "utt 2")
    with pytest.raises(UserError, match=r"lacks tiny-000002\.index\.json"):
        corpus.key(3)


def test_tars_may_lie_elsewhere(tmp_path):
    make_corpus(tmp_path)
    for tar in tmp_path.glob("*.tar"):
        tar.unlink()
    corpus = Corpus.open(tmp_path)
    corpus.check(with_tars=False)
    with pytest.raises(UserError, match=r"lacks tiny-000000\.tar"):
        corpus.check()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("failures", value) for value in ("many", {"empty": "many"}, {"empty": -1}, {"empty": 1.5}, [3])),
        ("outliers", {"peak": 10**30}),
        ("counts", {"seconds": float("inf")}),
    ],
)
def test_counts_of_a_manifest_that_cannot_be_are_refused(tmp_path, name, value):
    make_corpus(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, name: value}))
    with pytest.raises(UserError, match="is not the manifest of a corpus"):
        Corpus.open(tmp_path)


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"codec": 1, "shards": []}', '{"codec": {}, "shards": 3}'])
def test_a_manifest_of_another_kind_is_refused(tmp_path, manifest):
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(UserError, match=r"is not the manifest of a corpus|not a codec spec"):
        Corpus.open(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"tar": "../../etc/passwd"},
        {"keys": ["one"]},
        {"frames": [-1, 2, 3]},
        {"frames": [2**40, 2, 3]},
        {"frames": [[1], [2, 3]]},
        {"offsets": {}},
        {"offsets": []},
        {"sizes": {"codes.npy": [1, 1, 1], "json": ["x", 1, 1]}},
        {"failures": [{"key": "a"}]},
        {"seconds": None},
        {"crc32": [1, 2]},
        {"crc32": [1, 2, 2**32]},
        {"crc32": ["x", 1, 1]},
        {"checks": [1, 2, 3]},
        {"checks": {"dc": [0.1, 0.2]}},
        {"checks": {"dc": [0.1, 0.2, "loud"]}},
        {"checks": {"dc": [0.1, 0.2, 1e40]}},
        {"checks": {"dc": [0.1, 0.2, [0.3]]}},
    ],
)
def test_a_malformed_index_is_refused(tmp_path, change):
    make_corpus(tmp_path)
    path = index_path(tmp_path, "tiny-000000.tar")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(UserError, match="is not the index of a shard"):
        ShardIndex.read(path)


def test_shard_names_sort_in_order():
    assert shard_name("libritts", 42) == "libritts-000042.tar"
    assert index_path("here", "libritts-000042.tar").name == "libritts-000042.index.json"


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        (("sizes", "codes.npy"), 2**62, "beyond 1125899906842624 bytes"),
        (("sizes", "codes.npy"), 2**63, "OverflowError"),
        (("offsets", "json"), 2**62, "beyond 1125899906842624 bytes"),
        (("sizes", "codes.npy"), 1, "too small for its frames"),
        (("frames",), 2**31 - 1, "too small for its frames"),
        (("text_chars",), 10**6, "too small for its text"),
        (("sizes", "json"), None, "TypeError"),
    ],
)
def test_numbers_that_cannot_be_are_refused_where_the_index_is_read(tmp_path, column, value, reason):
    make_corpus(tmp_path)
    path = index_path(tmp_path, "tiny-000000.tar")
    values = json.loads(path.read_text())
    numbers = values[column[0]] if len(column) == 1 else values[column[0]][column[1]]
    numbers[0] = value
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=f"is not the index of a shard.*({reason})"):
        ShardIndex.read(path)


@pytest.mark.parametrize("seconds", ["NaN", "Infinity", "-1"])
def test_seconds_that_cannot_be_are_refused(tmp_path, seconds):
    make_corpus(tmp_path)
    path = index_path(tmp_path, "tiny-000000.tar")
    path.write_text(re.sub('"seconds": [^,]+,', f'"seconds": {seconds},', path.read_text()))
    with pytest.raises(UserError, match="seconds of speech"):
        ShardIndex.read(path)
