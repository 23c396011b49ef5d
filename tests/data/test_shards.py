"""Shards: fixed bytes, keys, random access, webdataset alone, and damaged or hostile members."""

import hashlib
import io
import json
import multiprocessing
import os
import pickle
import tarfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import unquote

import numpy as np
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st

from slmkit.codec.base import CodecSpec, Stream
from slmkit.data import shards as shards_module
from slmkit.data.index import Corpus, index_path, write_manifest
from slmkit.data.shards import Sample, ShardReader, ShardWriter, escape_key
from slmkit.errors import DamagedSample, UserError
from slmkit.tokenization.integrity import check_shards

SPEC = CodecSpec(
    name="tiny",
    sample_rate=16000,
    hop_samples=200,
    streams=(Stream("one", 1024, "content"), Stream("two", 16, "prosody")),
    speaker_dim=4,
    weights_sha256="",
)
unicode_text = st.text(st.characters(exclude_categories=["Cs"]))


def make_sample(key="utt", frames=5, speaker=True, **meta):
    generator = np.random.default_rng(frames)
    codes = generator.integers(0, 16, (2, frames)).astype(np.uint16)
    vector = generator.standard_normal(4).astype(np.float32) if speaker else None
    return Sample(key, codes, vector, {"text": "Hello.", "seconds": 1.5, "speaker": "s", **meta})


def write_corpus(directory, *shards, spec=SPEC, checksums=True):
    """A corpus, as an older slmkit wrote it when it shall have no checksums."""
    indexes = []
    for number, samples in enumerate(shards):
        writer = ShardWriter(directory, "tiny", number)
        for sample in samples:
            writer.add(sample)
        indexes.append(writer.commit())
        path = index_path(directory, indexes[-1].tar)
        if not checksums:
            path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "crc32"}))
    write_manifest(directory, "tiny", spec, [index.summary for index in indexes], {})
    return Corpus.open(directory)


def assert_equal(read, written):
    assert read.key == written.key
    assert read.meta == written.meta
    np.testing.assert_array_equal(read.codes, written.codes, strict=True)
    assert (read.speaker is None) == (written.speaker is None)
    if written.speaker is not None:
        np.testing.assert_array_equal(read.speaker, written.speaker, strict=True)


@given(key=unicode_text.filter(bool))
def test_an_escaped_key_comes_back_and_is_safe_in_a_name(key):
    name = escape_key(key)
    assert unquote(name) == key
    assert not set(name) & set(". /\\\0\n")
    assert name.isascii()


def test_keys_that_cannot_be_names_are_refused():
    with pytest.raises(ValueError, match="the key of a sample is empty"):
        escape_key("")
    with pytest.raises(ValueError, match="surrogates not allowed"):
        escape_key("\ud800")


@given(
    key=unicode_text.filter(bool),
    text=unicode_text,
    frames=st.integers(0, 40),
    extra=st.dictionaries(
        unicode_text.filter(lambda name: name not in ("key", "text", "seconds")),
        st.one_of(
            st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), unicode_text
        ),
        max_size=4,
    ),
)
def test_what_is_written_is_read(tmp_path_factory, key, text, frames, extra):
    directory = tmp_path_factory.mktemp("round")
    sample = make_sample(key, frames)
    sample.meta.update(extra, text=text)
    corpus = write_corpus(directory, [make_sample("before"), sample])
    assert_equal(ShardReader(corpus).read(1), sample)
    assert ShardReader(corpus).read_meta(1) == sample.meta
    assert corpus.shards[0].text_chars[1] == len(text)


def test_equal_samples_give_equal_bytes(tmp_path):
    for name in ("a", "b"):
        write_corpus(tmp_path / name, [make_sample("x"), make_sample("y" * 300, 3)])
    names = sorted(os.listdir(tmp_path / "a"))
    assert names == ["manifest.json", "tiny-000000.index.json", "tiny-000000.tar"]
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    with tarfile.open(tmp_path / "a" / "tiny-000000.tar") as archive:
        found = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in archive}
    assert found == {(0, 0, 0, "slmkit", "slmkit", 0o644)}


def test_the_index_tells_the_hash_and_the_place_of_every_member(tmp_path):
    corpus = write_corpus(tmp_path, [make_sample("x"), make_sample("long" * 60, 7)])
    tar, index = (tmp_path / "tiny-000000.tar").read_bytes(), corpus.shards[0]
    assert index.sha256 == hashlib.sha256(tar).hexdigest()
    for row, key in enumerate(index.keys):
        place = slice(index.offsets["codes.npy"][row], index.offsets["codes.npy"][row] + index.sizes["codes.npy"][row])
        codes = np.load(io.BytesIO(tar[place]), allow_pickle=False)
        assert codes.shape == (2, index.frames[row])
        with tarfile.open(tmp_path / "tiny-000000.tar") as archive:
            assert archive.extractfile(f"{key}.codes.npy").read() == tar[place]


def test_webdataset_alone_reads_the_shards(tmp_path):
    written = [make_sample("19_198"), make_sample("dots. and/spaces", 9, title="né"), make_sample("k" * 200, 2)]
    write_corpus(tmp_path, written)
    dataset = webdataset.WebDataset(str(tmp_path / "tiny-000000.tar"), shardshuffle=False).decode()
    read = list(dataset)
    assert [sample["json"]["key"] for sample in read] == [sample.key for sample in written]
    assert [unquote(sample["__key__"]) for sample in read] == [sample.key for sample in written]
    for got, sample in zip(read, written, strict=True):
        np.testing.assert_array_equal(got["codes.npy"], sample.codes, strict=True)
        np.testing.assert_array_equal(got["speaker.npy"], sample.speaker, strict=True)
        assert {**sample.meta, "key": sample.key} == got["json"]


def test_a_codec_without_a_speaker_vector_writes_none(tmp_path):
    spec = CodecSpec(**{**SPEC.__dict__, "speaker_dim": 0})
    corpus = write_corpus(tmp_path, [make_sample(speaker=False)], spec=spec)
    assert set(corpus.shards[0].offsets) == {"codes.npy", "json"}
    assert ShardReader(corpus).read(0).speaker is None


def test_the_tar_appears_with_commit_and_a_finished_one_is_never_overwritten(tmp_path):
    writer = ShardWriter(tmp_path, "tiny", 0)
    writer.add(make_sample())
    assert os.listdir(tmp_path) == []
    (tmp_path / writer.tar).write_bytes(b"of a process that was killed before it wrote the index")
    writer.commit()
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    same = ShardWriter(tmp_path, "tiny", 0)
    same.add(make_sample())
    same.commit()
    with pytest.raises(UserError, match=r"tiny-000000\.index\.json exists with other content"):
        ShardWriter(tmp_path, "tiny", 0).commit()
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()} == before


def test_samples_of_the_wrong_kind_are_refused(tmp_path):
    writer = ShardWriter(tmp_path, "tiny", 0)
    with pytest.raises(ValueError, match=r"codes must be uint16 \[K, T\], got int64"):
        writer.add(Sample("k", np.zeros((2, 3), dtype=np.int64), None, {"text": "", "seconds": 0}))
    writer.add(make_sample("first"))
    with pytest.raises(ValueError, match=r"second: members .*, the samples before have .*speaker"):
        writer.add(make_sample("second", speaker=False))
    for checks in ("many", {"dc": "0.1"}, {"dc": None}, {"dc": True}):
        with pytest.raises(ValueError, match="third: the checks must map names to numbers"):
            writer.add(make_sample("third", checks=checks))
    assert writer.commit().keys == ("first",)


def _read_all(reader):
    return [reader.read(i).codes.sum() for i in range(len(reader.corpus))]


def test_a_reader_survives_pickle_fork_threads_and_more_shards_than_handles(tmp_path, monkeypatch):
    monkeypatch.setattr(shards_module, "OPEN_TARS", 2)
    corpus = write_corpus(
        tmp_path, *([make_sample(f"{shard}-{i}", shard + i + 1) for i in range(3)] for shard in range(5))
    )
    reader = ShardReader(corpus)
    expected = _read_all(reader)
    assert _read_all(pickle.loads(pickle.dumps(reader))) == expected
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(_read_all, [reader] * 8)) == [expected] * 8
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_read_all, [reader] * 4) == [expected] * 4
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        _read_all(reader)
    assert len(os.listdir("/proc/self/fd")) == before


def overwrite(corpus, suffix, content, row=1):
    """Put `content`, padded to the member's size, in place of a member."""
    index = corpus.shards[0]
    size = int(index.sizes[suffix][row])
    assert len(content) <= size
    with open(corpus.directory / index.tar, "r+b") as file:
        file.seek(int(index.offsets[suffix][row]))
        file.write(content.ljust(size, b"\0"))


class Trap:
    """Leaves a file behind when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def pickled_npy(path):
    buffer = io.BytesIO()
    np.save(buffer, np.array([Trap(path)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def test_a_pickle_in_an_array_member_is_refused_and_not_run(tmp_path):
    corpus = write_corpus(tmp_path / "c", [make_sample("a"), make_sample("b", 200)], checksums=False)
    overwrite(corpus, "codes.npy", pickled_npy(tmp_path / "trapped"))
    with pytest.raises(UserError, match=r"sample 'b' cannot be read: an array with header .*'\|O'"):
        ShardReader(corpus).read(1)
    assert not (tmp_path / "trapped").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "trapped")))
    assert (tmp_path / "trapped").exists()  # the trap itself works


@pytest.mark.parametrize(
    ("suffix", "content", "match"),
    [
        ("codes.npy", b"", "an array with header ''"),
        ("codes.npy", b"\x93NUMPY\x03\x00", "an array with header"),
        ("speaker.npy", b"PK\x03\x04", "an array with header"),
        ("json", b"{", "Expecting property name"),
        ("json", b"\xff", "can't decode byte"),
        ("json", b"[" * 60, "Expecting value"),
        ("json", b'{"key": "a"}   ', "Extra data"),
    ],
)
def test_a_damaged_member_names_tar_key_and_expected_hash(tmp_path, suffix, content, match):
    corpus = write_corpus(tmp_path, [make_sample("a"), make_sample("b", 200)], checksums=False)
    overwrite(corpus, suffix, content)
    with pytest.raises(DamagedSample, match=match) as caught:
        ShardReader(corpus).read(1)
    assert "tiny-000000.tar" in str(caught.value)
    assert "'b'" in str(caught.value)
    assert corpus.shards[0].sha256 in str(caught.value)
    assert_equal(ShardReader(corpus).read(0), make_sample("a"))


def test_the_json_of_another_sample_is_refused(tmp_path):
    corpus = write_corpus(tmp_path, [make_sample("a"), make_sample("b")], checksums=False)
    overwrite(corpus, "json", b'{"key": "a"}'.ljust(int(corpus.shards[0].sizes["json"][1])))
    for read in (ShardReader(corpus).read, ShardReader(corpus).read_meta):
        with pytest.raises(UserError, match="its json belongs to another sample"):
            read(1)


def test_a_code_outside_its_codebook_is_refused(tmp_path):
    bad = Sample("bad", np.full((2, 3), 16, np.uint16), make_sample().speaker, make_sample().meta)
    with pytest.raises(UserError, match="a code lies outside its codebook"):
        ShardReader(write_corpus(tmp_path, [bad])).read(0)


OLD = Sample(
    "old",
    np.arange(12, dtype=np.int16).reshape(2, 6),
    np.arange(4, dtype=np.float32),
    {"text": "Hello.", "seconds": 1.5, "speaker": "s"},
)
OLD_SHA256 = "ddcce53c232e20a05ca5382b3a37921a4b1bad3004b7367c518cd7c8f450188f"  # of the tar that slmkit 0.5 made of it


def write_old(directory, samples, monkeypatch, spec=SPEC):
    """A corpus of int16 codes."""
    with monkeypatch.context() as patch:
        patch.setattr(shards_module, "CODES_DTYPE", np.dtype("<i2"))
        return write_corpus(directory, samples, spec=spec)


def test_shards_of_older_versions_are_read_and_verified_as_they_are(tmp_path, monkeypatch):
    corpus = write_old(tmp_path, [OLD], monkeypatch)
    assert hashlib.sha256((tmp_path / "tiny-000000.tar").read_bytes()).hexdigest() == OLD_SHA256
    assert list(check_shards(corpus, lambda shard: None)) == []
    read = ShardReader(corpus).read(0)
    assert read.codes.dtype == np.uint16
    assert np.array_equal(read.codes, OLD.codes)
    new = ShardReader(write_corpus(tmp_path / "new", [replace(OLD, codes=read.codes)]))
    assert_equal(new.read(0), read)
    assert new.corpus.shards[0].sha256 != OLD_SHA256


def test_a_negative_code_of_an_old_shard_is_no_code_of_a_large_codebook(tmp_path, monkeypatch):
    spec = replace(SPEC, streams=(Stream("one", 2**16, "content"), Stream("two", 2**16, "content")))
    corpus = write_old(tmp_path, [replace(OLD, codes=OLD.codes - 1)], monkeypatch, spec)
    with pytest.raises(UserError, match="a code lies outside its codebook"):
        ShardReader(corpus).read(0)


def test_32_streams_of_65536_entries(tmp_path):
    spec = replace(SPEC, streams=tuple(Stream(f"s{i}", 2**16, "coupled") for i in range(32)))
    codes = np.random.default_rng(0).integers(0, 2**16, (32, 9)).astype(np.uint16)
    codes[:, 0], codes[:, 1] = 0, 2**16 - 1
    corpus = write_corpus(tmp_path, [replace(OLD, codes=codes)], spec=spec)
    assert list(check_shards(corpus, lambda shard: None)) == []
    assert np.array_equal(ShardReader(corpus).read(0).codes, codes)
    (sample,) = webdataset.WebDataset(str(tmp_path / "tiny-000000.tar"), shardshuffle=False).decode()
    assert np.array_equal(sample["codes.npy"], codes)


def test_a_missing_speaker_vector_is_named(tmp_path):
    corpus = write_corpus(tmp_path, [make_sample(speaker=False)])
    with pytest.raises(UserError, match="the speaker vector of width 4 is missing"):
        ShardReader(corpus).read(0)


def test_array_data_of_another_length_is_refused(tmp_path):
    corpus = write_corpus(tmp_path, [make_sample()], checksums=False)
    corpus.shards[0].sizes["codes.npy"][0] -= 2
    with pytest.raises(UserError, match="18 bytes of array data, expected 20"):
        ShardReader(corpus).read(0)


def test_a_tar_that_shrinks_or_vanishes_while_in_use_is_named(tmp_path):
    corpus = write_corpus(tmp_path, [make_sample()])
    corpus.check()
    os.truncate(tmp_path / "tiny-000000.tar", 700)
    with pytest.raises(UserError, match=r"the tar ends .* bytes too early"):
        ShardReader(corpus).read(0)
    (tmp_path / "tiny-000000.tar").unlink()
    with pytest.raises(DamagedSample, match="No such file") as caught:
        ShardReader(corpus).read(0)
    assert (caught.value.key, caught.value.path) == ("utt", str(tmp_path / "tiny-000000.tar"))
    assert corpus.shards[0].sha256 in str(caught.value)


def test_a_tar_that_is_restored_while_in_use_is_opened_again(tmp_path):
    """The file that is open may be gone for good (an NFS server says that it is stale)."""
    corpus = write_corpus(tmp_path, [make_sample("a"), make_sample("b")])
    tar = tmp_path / corpus.shards[0].tar
    whole = tar.read_bytes()
    tar.write_bytes(bytes(len(whole)))
    reader = ShardReader(corpus)
    with pytest.raises(DamagedSample):
        reader.read(0)
    (tmp_path / "copy").write_bytes(whole)
    (tmp_path / "copy").replace(tar)
    assert reader.read(0).key == "a"


def flip_bit(corpus, suffix, row, byte, bit=0):
    """Turn one bit of a member over."""
    index = corpus.shards[0]
    with open(corpus.directory / index.tar, "r+b") as file:
        file.seek(int(index.offsets[suffix][row]) + byte)
        old = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([old ^ 1 << bit]))


@pytest.mark.parametrize(
    ("suffix", "byte"),
    [("codes.npy", 10 + 118), ("speaker.npy", 10 + 118 + 2), ("json", 36)],
)
def test_one_flipped_bit_is_found_where_every_value_stays_valid(tmp_path, suffix, byte):
    samples = [make_sample("a", 30), make_sample("b", 40)]
    corpus = write_corpus(tmp_path / "new", samples)
    old = write_corpus(tmp_path / "old", samples, checksums=False)
    for damaged in (corpus, old):
        flip_bit(damaged, suffix, 1, byte)
    ShardReader(old).read(1)  # without a checksum nobody could tell
    reader = ShardReader(corpus)
    for read in (reader.read, reader.read_meta):
        with pytest.raises(DamagedSample, match=r"sample 'b' cannot be read: its bytes have changed: CRC-32") as caught:
            read(1)
        assert (caught.value.key, caught.value.path) == ("b", str(tmp_path / "new" / "tiny-000000.tar"))
        assert f"a tar with sha256 {corpus.shards[0].sha256}" in str(caught.value)
    assert_equal(reader.read(0), samples[0])


def test_the_checksum_is_that_of_the_members_by_sorted_suffix(tmp_path):
    corpus = write_corpus(tmp_path, [make_sample("a"), make_sample("b", 40)])
    dataset = webdataset.WebDataset(str(tmp_path / "tiny-000000.tar"), shardshuffle=False)
    expected = [zlib.crc32(b"".join(sample[m] for m in ("codes.npy", "json", "speaker.npy"))) for sample in dataset]
    assert corpus.shards[0].crc32.tolist() == expected
