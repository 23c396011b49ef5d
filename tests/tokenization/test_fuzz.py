"""Five hundred damaged files, or members of tars, among five hundred good ones: no crash, no hang, nothing good is
lost, and every bad one is in the ledger with its reason."""

import io
import itertools
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from fuzzed_audio import KINDS, fuzzed, good
from tokenization.hostile import ledger

from slmkit.data.index import Corpus

ROOT = Path(__file__).resolve().parents[2]
COUNT = 500
LIMIT_SEC = 400.0
TARS = 10
BLOCK = 512


@pytest.fixture(scope="module")
def damaged():
    """(name, content) of `COUNT` files that are surely bad."""
    return list(itertools.islice(((name, content) for name, content, bad in fuzzed(7, 4 * COUNT) if bad), COUNT))


def run_job(source, codec, out, kind):
    """The command as users run it, with a limit on its time; gives the keys of the samples and the ledger by key."""
    options = [f"kind={kind}", "min_sec=0.1", "max_sec=30", "shard_samples=64", "max_failure_share=0.9"]
    words = [word for option in options for word in ("--set", option)]
    command = [sys.executable, "-m", "slmkit", "tokenize", "run", *map(str, (source, codec, out)), *words]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, stderr=subprocess.PIPE, text=True, timeout=LIMIT_SEC, check=False, cwd=out.parent
    )
    assert done.returncode == 0, done.stderr[-3000:]
    corpus = Corpus.open(out)
    lines = ledger(out)
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert counts["samples"] == len(corpus)
    assert counts["utterances"] == len(corpus) + len(lines)
    assert all(line["reason"] and line["detail"] for line in lines)
    return {corpus.key(i) for i in range(len(corpus))}, {line["key"]: line["reason"] for line in lines}


@pytest.mark.full
def test_damaged_files_among_good_ones(codec_path, damaged, tmp_path):
    source = tmp_path / "source"
    (source / "audio").mkdir(parents=True)
    uncertain = [(name, content) for name, content, bad in fuzzed(8, 150) if not bad]
    sound = [(f"{i:06d}-sound.{kind}", i, kind) for i, kind in zip(range(COUNT), itertools.cycle(KINDS), strict=False)]
    for name, content in damaged + uncertain:
        (source / "audio" / name).write_bytes(content)
    for name, i, kind in sound:
        (source / "audio" / name).write_bytes(good(kind, np.random.default_rng([1, i])))
    names = [*(name for name, _ in damaged + uncertain), *(name for name, _, _ in sound)]
    np.random.default_rng(0).shuffle(names)
    rows = [json.dumps({"path": f"audio/{name}", "text": "Some words.", "key": name}) for name in names]
    (source / "m.jsonl").write_text("\n".join(rows))
    samples, failures = run_job(source / "m.jsonl", codec_path, tmp_path / "out", "manifest")
    assert {name for name, _, _ in sound} <= samples
    assert {name for name, _ in damaged} <= failures.keys()
    assert samples | failures.keys() == set(names)
    assert samples.isdisjoint(failures)


def record(key):
    return json.dumps({"id": key, "text": "Some words.", "speaker": "s", "language": "en", "dnsmos": 3.9}).encode()


def member(name, content):
    """The bytes of a member: header, content, padding."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % BLOCK)


def destroyed(block, random):
    """A member whose header no longer tells where it ends."""
    header = bytearray(block[:BLOCK])
    for place in random.integers(100, 150, 6):  # mode, owner, size, time: the checksum no longer holds
        header[place] ^= 0x15
    return bytes(header) + block[BLOCK:]


def make_tars(root, damaged):
    """`COUNT` good pairs, and as many bad ones: damaged audio, records that are none, headers that are destroyed, and
    a pair at the end of each tar that is cut short. Gives the keys of the good and of the bad ones."""
    random = np.random.default_rng(3)
    bad_json = (b"", b"{", b"[]", b"\xff\xfe{}", b'{"id": 3, "text": ["a"]}', b'{"text": ""}', b"{" * 2000, b"null")
    sound, bad = [], []
    pairs = []
    for i in range(COUNT):
        key = f"good_{i:05d}"
        sound.append(key)
        pairs.append(
            [member(f"{key}.mp3", good("mp3", np.random.default_rng([2, i]))), member(f"{key}.json", record(key))]
        )
    for i in range(COUNT - TARS):
        key = f"bad_{i:05d}"
        bad.append(key)
        audio = member(f"{key}.mp3", good("mp3", np.random.default_rng([4, i % 7])))
        if i % 5 == 0:
            pairs.append([audio, member(f"{key}.json", bad_json[i // 5 % len(bad_json)])])
        elif i % 5 == 1:
            pairs.append([destroyed(audio, random), member(f"{key}.json", record(key))])
        elif i % 5 == 2:
            pairs.append([audio, destroyed(member(f"{key}.json", record(key)), random)])
        else:
            pairs.append([member(f"{key}.mp3", damaged[i][1]), member(f"{key}.json", record(key))])
    random.shuffle(pairs)
    (root / "EN").mkdir(parents=True)
    for number in range(TARS):
        key = f"cut_{number:05d}"
        bad.append(key)
        last = member(f"{key}.json", record(key)) + member(f"{key}.mp3", good("mp3", random))
        content = (
            b"".join(itertools.chain.from_iterable(pairs[number::TARS])) + last[: -int(random.integers(600, 2000))]
        )
        (root / "EN" / f"EN-B{number:06d}.tar").write_bytes(content)
    return set(sound), set(bad)


@pytest.mark.full
def test_damaged_tars(codec_path, damaged, tmp_path):
    sound, bad = make_tars(tmp_path / "source", damaged)
    assert (len(sound), len(bad)) == (COUNT, COUNT)
    samples, failures = run_job(tmp_path / "source", codec_path, tmp_path / "out", "emilia")
    assert samples == sound
    assert bad <= failures.keys()
    places = failures.keys() - bad  # a destroyed header is a line of its own, beside what is left of its key
    assert all("@" in place and failures[place] == "damaged" for place in places)


def test_a_tar_is_read_as_the_standard_library_reads_it(tmp_path):
    """The helper above makes what a tar is."""
    content = member("a.mp3", b"x" * 700) + member("a.json", b"{}")
    with tarfile.open(fileobj=io.BytesIO(content + bytes(2 * BLOCK))) as tar:
        assert [(each.name, each.size) for each in tar] == [("a.mp3", 700), ("a.json", 2)]
