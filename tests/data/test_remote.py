"""The shard cache and corpora at a URL: a real HTTP server, several processes, kills, full and small caches."""

import contextlib
import hashlib
import http.server
import multiprocessing
import os
import pickle
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import fsspec
import numpy as np
import pytest
from synthetic import write_corpus

from slmkit.data import remote
from slmkit.data.remote import DamagedTar, ShardCache, fetch_metadata, join
from slmkit.data.shards import ShardReader
from slmkit.errors import DamagedSample, UserError

BIG = 2**30
fork = multiprocessing.get_context("fork")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a directory, counts what it is asked for and can be told to misbehave."""

    def do_GET(self):
        self.server.asked.append(self.path)
        how = self.server.faults.pop(0) if self.server.faults else ""
        if how == "busy":
            self.send_error(503)
        elif how in ("short", "nameless"):
            self.send_response(200)
            if how == "short":
                self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b"x" * 100)
        else:
            super().do_GET()

    def log_message(self, *args):
        pass


@contextlib.contextmanager
def serving(directory):
    """(URL, server) of a loopback HTTP server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(directory)))
    server.asked, server.faults = [], []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(remote, "FIRST_PAUSE_SEC", 0.01)


def make_tars(directory, number=4, size=10_000):
    """(path, sha256) of files of random bytes."""
    directory.mkdir()
    tars = []
    for i in range(number):
        content = np.random.default_rng(i).bytes(size)
        (directory / f"t{i}.tar").write_bytes(content)
        tars.append((str(directory / f"t{i}.tar"), hashlib.sha256(content).hexdigest()))
    return tars


def read_all(cache, source, sha256):
    with open(cache.open(source, sha256), "rb") as file:
        return file.read()


def held(cache):
    """Names of the files in the cache but for its locks, which are empty."""
    return sorted(path.name for path in cache.directory.iterdir() if path.suffix != ".lock" and path.name != ".lock")


def held_bytes(cache):
    """What the cache holds, at this moment."""
    return sum(path.stat().st_size for path in cache.directory.iterdir() if path.suffix in (".tar", ".part"))


def equal(sample, other):
    return sample.key == other.key and sample.meta == other.meta and np.array_equal(sample.codes, other.codes)


def test_a_tar_is_copied_once_and_then_read_from_the_copy(tmp_path):
    (source, sha256), *_ = make_tars(tmp_path / "tars")
    cache = pickle.loads(pickle.dumps(ShardCache(tmp_path / "cache", BIG)))
    content = read_all(cache, source, sha256)
    assert hashlib.sha256(content).hexdigest() == sha256
    os.unlink(source)
    assert read_all(cache, source, sha256) == content
    assert held(cache) == [f"{sha256}.tar"]


def test_the_least_recently_used_tar_goes_and_its_reader_goes_on(tmp_path):
    tars = make_tars(tmp_path / "tars")
    cache = ShardCache(tmp_path / "cache", 25_000)
    handles = []
    for source, sha256 in [tars[0], tars[1], tars[0], tars[2]]:  # the third use keeps the first tar
        handles.append(cache.open(source, sha256))
        time.sleep(0.02)
        assert held_bytes(cache) <= 25_000
    assert {path.stem for path in cache.directory.glob("*.tar")} == {tars[0][1], tars[2][1]}
    assert hashlib.sha256(os.pread(handles[1], 10_000, 0)).hexdigest() == tars[1][1]
    for handle in handles:
        os.close(handle)


def test_a_tar_that_can_never_fit_is_refused(tmp_path):
    (source, sha256), *_ = make_tars(tmp_path / "tars")
    with pytest.raises(UserError, match=r"is larger than the shard cache [\s\S]*10000 bytes[\s\S]*shard_cache_gib"):
        ShardCache(tmp_path / "cache", 9_999).open(source, sha256)
    assert held(ShardCache(tmp_path / "cache", BIG)) == []


def test_a_full_disk_names_cache_and_size(tmp_path, monkeypatch):
    (source, sha256), *_ = make_tars(tmp_path / "tars")
    cache = ShardCache(tmp_path / "cache", BIG)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(UserError, match=r"shard cache .* cannot take .*t0\.tar: No space left") as caught:
        cache.open(source, sha256)
    assert not isinstance(caught.value, DamagedTar)
    assert "and 1024 MiB for the whole cache" in str(caught.value)
    assert held(cache) == []


def test_a_directory_that_cannot_be_made_is_no_damaged_tar(tmp_path):
    (source, sha256), *_ = make_tars(tmp_path / "tars")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write") as caught:
        ShardCache(tmp_path / "file" / "cache", BIG).open(source, sha256)
    assert not isinstance(caught.value, DamagedTar)


@pytest.mark.parametrize("suffix", ["tar", "part"])
@pytest.mark.parametrize(("held_bytes", "fits"), [(4_000, True), (6_000, False)])
def test_what_cannot_be_deleted_counts_and_is_no_damaged_tar(tmp_path, monkeypatch, suffix, held_bytes, fits):
    """The file of another user in a directory where each deletes their own."""
    (source, sha256), *_ = make_tars(tmp_path / "tars")
    cache, unlink = ShardCache(tmp_path / "cache", 15_000), remote.Path.unlink
    cache.directory.mkdir()
    kept = cache.directory / f"{sha256[:2]}{'0' * 62}.{suffix}"
    kept.write_bytes(bytes(held_bytes))

    def refuse(path, **options):
        if path == kept:
            raise PermissionError(1, "Operation not permitted")
        unlink(path, **options)

    monkeypatch.setattr(remote.Path, "unlink", refuse)
    if fits:
        assert len(read_all(cache, source, sha256)) == 10_000
        return
    with pytest.raises(UserError, match=r"cannot write .*cache: Operation not permitted") as caught:
        cache.open(source, sha256)
    assert not isinstance(caught.value, DamagedTar)


def test_a_cache_that_is_cleaned_meanwhile_is_no_damaged_tar(tmp_path, monkeypatch):
    tars = make_tars(tmp_path / "tars")
    cache = ShardCache(tmp_path / "cache", 25_000)
    read_all(cache, *tars[0])
    stat = remote.Path.stat

    def gone(path, **options):
        if path.suffix in (".tar", ".part") and path.parent == cache.directory:
            path.unlink(missing_ok=True)
        return stat(path, **options)

    with monkeypatch.context() as cleaned:  # between the listing and the look at each file
        cleaned.setattr(remote.Path, "stat", gone)
        assert len(read_all(cache, *tars[1])) == 10_000
    monkeypatch.setattr(ShardCache, "_reserve", lambda *_: None)  # and between a file's making and its opening
    with pytest.raises(UserError, match=r"cannot write .*cache: No such file") as caught:
        cache.open(*tars[2])
    assert not isinstance(caught.value, DamagedTar)


def test_a_tar_with_another_hash_names_both(tmp_path):
    (source, sha256), (_, other), *_ = make_tars(tmp_path / "tars")
    with pytest.raises(DamagedTar, match=rf"is not the tar [\s\S]*sha256 {sha256}, 10000 bytes[\s\S]*sha256 {other}"):
        ShardCache(tmp_path / "cache", BIG).open(source, other)
    with pytest.raises(DamagedTar, match=r"the index of .* has no SHA-256[\s\S]*'\.\./\.\./x'"):
        ShardCache(tmp_path / "cache", BIG).open(source, "../../x")
    with pytest.raises(DamagedTar, match=r"none\.tar is missing"):
        ShardCache(tmp_path / "cache", BIG).open(str(tmp_path / "none.tar"), sha256)
    with pytest.raises(DamagedTar, match=r"tars cannot be read: Is a directory"):
        ShardCache(tmp_path / "cache", BIG).open(str(tmp_path / "tars"), sha256)
    assert held(ShardCache(tmp_path / "cache", BIG)) == []


def _use(cache, url, tars, seed):
    """Read tars in a random order; the largest size the cache was seen to have."""
    largest = 0
    for i in np.random.default_rng(seed).integers(0, len(tars), 30):
        content = read_all(cache, f"{url}/t{i}.tar", tars[i][1])
        assert hashlib.sha256(content).hexdigest() == tars[i][1]
        with contextlib.suppress(FileNotFoundError):
            largest = max(largest, held_bytes(cache))
    return largest


def test_processes_share_the_copies_and_the_bound(tmp_path):
    tars = make_tars(tmp_path / "tars", 6)
    with serving(tmp_path / "tars") as (url, server), fork.Pool(4) as pool:
        wide = ShardCache(tmp_path / "wide", BIG)
        pool.starmap(_use, [(wide, url, tars, seed) for seed in range(4)])
        assert sorted(server.asked) == [f"/t{i}.tar" for i in range(6)]  # each once
        narrow = ShardCache(tmp_path / "narrow", 25_000)
        assert 20_000 <= max(pool.starmap(_use, [(narrow, url, tars, seed) for seed in range(4)])) <= 25_000


def test_threads_do_not_copy_a_tar_twice(tmp_path):
    (_, sha256), *_ = make_tars(tmp_path / "tars")
    cache = ShardCache(tmp_path / "cache", BIG)
    with serving(tmp_path / "tars") as (url, server), ThreadPoolExecutor(8) as pool:
        contents = set(pool.map(lambda _: read_all(cache, f"{url}/t0.tar", sha256), range(8)))
        assert server.asked == ["/t0.tar"]
    assert len(contents) == 1


def _hang_while_copying(cache, source, sha256):
    remote.CHUNK_BYTES = 1000
    hashlib.sha256 = lambda: Hanging()
    cache.open(source, sha256)


class Hanging:
    """A digest that never ends, once the first bytes are there."""

    def update(self, chunk):
        time.sleep(60)


def test_a_kill_in_the_middle_of_a_copy_leaves_nothing_for_long(tmp_path):
    tars = make_tars(tmp_path / "tars")
    cache = ShardCache(tmp_path / "cache", 15_000)
    process = fork.Process(target=_hang_while_copying, args=(cache, *tars[0]))
    process.start()
    part = cache.directory / f"{tars[0][1]}.part"
    while not part.exists() or part.stat().st_size == 0:
        time.sleep(0.01)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(read_all, cache, *tar) for tar in tars[:2]]  # for the tar itself, and for its space
        time.sleep(0.2)
        assert not any(future.done() for future in waiting)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        for future, (_, sha256) in zip(waiting, tars[:2], strict=True):
            assert hashlib.sha256(future.result(timeout=20)).hexdigest() == sha256
    part.write_bytes(b"x" * 9_000)  # what a killed process leaves, when nobody wants that tar any more
    read_all(cache, *tars[2])
    assert all(name.endswith(".tar") for name in held(cache))


def test_a_corpus_at_a_url_reads_like_the_one_it_is(tmp_path):
    corpus = write_corpus(tmp_path / "a corpus")
    expected = [ShardReader(corpus).read(i) for i in range(len(corpus))]
    with serving(tmp_path) as (url, server):
        url += "/a%20corpus/"
        cache = ShardCache(tmp_path / "cache", BIG)
        local = fetch_metadata(url, cache.directory)
        names = sorted(p.name for p in corpus.directory.iterdir() if p.suffix == ".json")
        assert sorted(p.name for p in local.iterdir() if p.name != ".lock") == names
        for name in names:
            assert (local / name).read_bytes() == (corpus.directory / name).read_bytes()
        before = len(server.asked)
        assert fetch_metadata(url, cache.directory) == local
        assert server.asked[before:] == ["/a%20corpus/manifest.json"]
        reader = pickle.loads(pickle.dumps(ShardReader(corpus, tars=url, cache=cache)))
        for i in reversed(range(len(corpus))):
            assert equal(reader.read(i), expected[i])
            assert reader.read_meta(i) == expected[i].meta
        assert len(server.asked) == before + 1 + len(corpus.shards)
    assert equal(reader.read(0), expected[0])  # from the copies alone


def test_a_corpus_behind_fsspec_is_read_through_the_cache(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    system = fsspec.filesystem("memory")
    system.put(str(corpus.directory), "/bucket/corpus", recursive=True)
    cache = ShardCache(tmp_path / "cache", BIG)
    local = fetch_metadata("memory://bucket/corpus", cache.directory)
    assert (local / "manifest.json").read_bytes() == (corpus.directory / "manifest.json").read_bytes()
    reader = ShardReader(corpus, tars="memory://bucket/corpus", cache=cache)
    assert equal(reader.read(3), ShardReader(corpus).read(3))
    with pytest.raises(UserError, match=r"cannot read nosuch://x/.*Protocol not known"):
        fetch_metadata("nosuch://x", cache.directory)


def test_a_damaged_or_missing_tar_at_a_url_is_a_damaged_sample(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    tar, sha256 = corpus.shards[0].tar, corpus.shards[0].sha256
    path = corpus.directory / tar
    whole = path.read_bytes()
    with serving(corpus.directory) as (url, _):
        reader = ShardReader(corpus, tars=url, cache=ShardCache(tmp_path / "cache", BIG))
        for content, match in [
            (whole[:-1] + b"x", "is not the tar"),
            (whole[:700], "is not the tar"),
            (None, "missing"),
        ]:
            path.unlink()
            if content is not None:
                path.write_bytes(content)
            with pytest.raises(DamagedSample, match=rf"sample 'utterance-0000' cannot be read: .*{match}") as caught:
                reader.read(0)
            assert (caught.value.key, caught.value.path) == ("utterance-0000", f"{url}/{tar}")
            assert f"a tar with sha256 {sha256}" in str(caught.value)
            if content is not None:
                assert hashlib.sha256(content).hexdigest() in str(caught.value)
            else:
                path.write_bytes(whole)
        assert reader.read(0).key == "utterance-0000"


def test_passing_faults_are_tried_again_and_lasting_ones_named(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    with serving(corpus.directory) as (url, server):
        reader = ShardReader(corpus, tars=url, cache=ShardCache(tmp_path / "cache", BIG))
        server.faults = ["busy", "short", "busy"]
        assert reader.read(0).key == "utterance-0000"
        server.faults = ["busy"] * 4
        with pytest.raises(UserError, match=r"cannot fetch http.*000001\.tar: HTTP Error 503[\s\S]*4 failed") as caught:
            reader.read(10)
        assert not isinstance(caught.value, DamagedSample)
        server.faults = ["nameless"]
        with pytest.raises(UserError, match="the server gives no size"):
            reader.read(10)
    with pytest.raises(UserError, match=r"cannot fetch http.*Connection refused"):
        reader.read(10)


def test_a_copy_that_suffered_is_fetched_again(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    cache = ShardCache(tmp_path / "cache", BIG)
    reader = ShardReader(corpus, cache=cache)
    expected = reader.read(0)
    copy = cache.directory / f"{corpus.shards[0].sha256}.tar"
    offset = int(corpus.shards[0].offsets["codes.npy"][0]) + 130
    for damage in (lambda file: file.write(b"\xff"), lambda file: file.truncate(600)):
        with open(copy, "r+b") as file:
            file.seek(offset)
            damage(file)
        assert equal(reader.read(0), expected)
    assert not cache.discard_damaged(corpus.shards[0].sha256)


def test_a_url_needs_a_cache(tmp_path):
    with pytest.raises(UserError, match=r"shards at a URL are read through a shard cache[\s\S]*data\.shard_cache"):
        ShardReader(write_corpus(tmp_path), tars="http://127.0.0.1:1/x")


def test_metadata_that_does_not_belong_together_is_refused(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    first, second = (corpus.directory / f"synthetic-00000{i}.index.json" for i in range(2))
    with serving(corpus.directory) as (url, _):
        kept = second.read_bytes()
        second.write_bytes(first.read_bytes())
        with pytest.raises(UserError, match=r"000001\.index\.json is not the index that manifest\.json lists"):
            fetch_metadata(url, tmp_path / "cache")
        second.unlink()
        with pytest.raises(UserError, match=r"000001\.index\.json is missing"):
            fetch_metadata(url, tmp_path / "cache")
        second.write_bytes(kept)
        local = fetch_metadata(url, tmp_path / "cache")
        assert [path.name for path in local.glob(".*")] == [".lock"]
        manifest = corpus.directory / "manifest.json"
        content = manifest.read_text()
        for text, match in [
            ("{}", "is not the manifest of a corpus"),
            (content.replace("synth", "../s"), "not a file name"),
        ]:
            manifest.write_text(text)
            with pytest.raises(UserError, match=match):
                fetch_metadata(url, tmp_path / "cache")
        manifest.unlink()
        with pytest.raises(UserError, match=r"holds no finished corpus: manifest\.json is missing"):
            fetch_metadata(url, tmp_path / "cache")


def test_places_are_joined_as_their_kind_asks():
    assert join("/data/x", "a.tar") == "/data/x/a.tar"
    assert join("s3://bucket/x/", "a b.tar") == "s3://bucket/x/a b.tar"
    assert join("https://host/x/?sign=1", "a b.tar") == "https://host/x/a%20b.tar?sign=1"
