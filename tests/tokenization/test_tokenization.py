"""The job as a whole: the same bytes however it is run, hostile inputs, interruption, a full disk, several tasks."""

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import webdataset
from tiny_codec import SPEC, TinyCodec, make_config

from slmkit.config.load import from_dict
from slmkit.config.tokenize import ImportConfig
from slmkit.data.index import Corpus
from slmkit.data.ledger import Failure
from slmkit.data.shards import ShardReader
from slmkit.errors import ConfigError, UserError
from slmkit.tokenization.corpus_job import CorpusJob
from slmkit.tokenization.job import import_codes, tokenize

RATE = 16000
# key -> reason; the keys of `hostile_corpus` that give no sample
EXPECTED_FAILURES = {
    "empty": "unreadable",
    "header": "empty",
    "hour": "too_long",
    "latin": "transcript_not_utf8",
    "nan": "non_finite",
    "nowords": "empty_transcript",
    "one": "too_short",
    "silent": "silent",
    "text": "unreadable",
    "truncated": "truncated",
    "twice": "duplicate_key",
    "unsaid": "missing_transcript",
    "pipe.old": "missing",
}
GOOD = {"8bit", "48k", "stereo", "twice", "a.key with. dots", "ogg", *(f"19_7_{i:06d}_000000" for i in range(12))}


def noise(seconds, seed, rate=RATE):
    return np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * rate)).astype(np.float32)


def add(path, wave, rate=RATE, text="Some words.", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate, **options)
    if text is not None:
        path.with_suffix(".normalized.txt").write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture(scope="module")
def hostile_corpus(tmp_path_factory):
    """A folder of good files among one of each kind that is bad or odd."""
    root = tmp_path_factory.mktemp("hostile")
    for i in range(12):
        add(root / f"19/7/19_7_{i:06d}_000000.wav", noise(0.3 + 0.11 * (i * 5 % 12), i), text=f"Words {i} é.\n")
    add(root / "8bit.wav", noise(0.5, 20), subtype="PCM_U8")
    add(root / "48k.flac", noise(0.5, 21, 48000), 48000)
    add(root / "ogg.ogg", noise(0.5, 21))
    add(root / "stereo.wav", np.stack([noise(0.5, 22), noise(0.5, 23)], axis=1))
    add(root / "a.key with. dots.wav", noise(0.4, 24))
    add(root / "hour.flac", np.zeros(3600 * 8000, np.int16), 8000)
    add(root / "latin.wav", noise(0.3, 25), text=b"caf\xe9")
    add(root / "nan.wav", np.where(np.arange(8000) == 4000, np.nan, noise(0.5, 26)), subtype="FLOAT")
    add(root / "nowords.wav", noise(0.3, 27), text=" \n")
    add(root / "one.wav", np.array([0.5]))
    add(root / "silent.wav", np.zeros(8000))
    add(root / "truncated.wav", noise(0.5, 28))
    os.truncate(root / "truncated.wav", 9000)
    add(root / "a/twice.wav", noise(0.3, 29))
    add(root / "b/twice.wav", noise(0.6, 30))
    add(root / "unsaid.wav", noise(0.3, 31), text=None)
    add(root / "header.wav", np.zeros(0))
    for name, content in (("empty", b""), ("text", b"this is not audio\n" * 50)):
        (root / f"{name}.wav").write_bytes(content)
        (root / f"{name}.normalized.txt").write_text("x")
    os.mkfifo(root / "pipe.old.wav")
    (root / "pipe.old.normalized.txt").write_text("x")
    return root


def run(source, out, codec=None, **changes):
    tokenize(codec or TinyCodec(), make_config(source, out, **changes))
    return hashes(out)


def hashes(out):
    """File name -> sha256; of the manifest and job.json without the commit, which may change while the tests run."""
    found = {}
    for path in sorted(Path(out).iterdir()):
        content = path.read_bytes()
        if path.name in ("manifest.json", "job.json"):
            values = json.loads(content)
            del values["made_by"]["commit"], values["made_by"]["command"]
            content = json.dumps(values).encode()
        found[path.name] = hashlib.sha256(content).hexdigest()
    return found


@pytest.fixture(scope="module")
def reference(hostile_corpus, tmp_path_factory):
    """(directory, hashes) of an undisturbed run in one process."""
    out = tmp_path_factory.mktemp("reference") / "out"
    return out, run(hostile_corpus, out)


def ledger(out):
    return [json.loads(line) for line in (Path(out) / "failures.jsonl").read_text().splitlines()]


def test_every_bad_file_is_a_ledger_line_and_every_good_one_a_sample(reference):
    out, _ = reference
    lines = ledger(out)
    assert {line["key"]: line["reason"] for line in lines} == EXPECTED_FAILURES
    assert len(lines) == len(EXPECTED_FAILURES)
    assert all(line["detail"] for line in lines)
    corpus = Corpus.open(out)
    assert sorted(corpus.key(i) for i in range(len(corpus))) == sorted(GOOD)
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert (counts["utterances"], counts["samples"], counts["failures"]) == (31, 18, 13)
    in_the_root = sorted(EXPECTED_FAILURES.keys() - {"twice"})
    assert [line["key"] for line in lines] == [*in_the_root, "twice"]  # folders come behind the files beside them


def test_samples_hold_what_the_codec_makes_of_the_file(reference, hostile_corpus):
    corpus = Corpus.open(reference[0])
    reader = ShardReader(corpus)
    samples = {sample.key: sample for sample in (reader.read(i) for i in range(len(corpus)))}
    sample = samples["19_7_000003_000000"]
    wave, _ = soundfile.read(hostile_corpus / "19/7/19_7_000003_000000.wav", dtype="float32")
    blocks = wave[: len(wave) // 200 * 200].reshape(-1, 200)
    np.testing.assert_allclose(sample.codes[0], np.abs(blocks).mean(1) * 1023, atol=1.01)
    np.testing.assert_allclose(sample.speaker, [wave.mean(), np.abs(wave).max()], atol=1e-6)
    assert sample.meta == {
        "text": "Words 3 é.",
        "speaker": "19",
        "language": "",
        "seconds": len(wave) / RATE,
        "source": "19/7/19_7_000003_000000.wav",
    }
    assert samples["48k"].codes.shape == (2, 40)
    assert samples["48k"].meta["seconds"] == 0.5
    assert samples["twice"].meta["source"] == "a/twice.wav"


def test_webdataset_alone_reads_the_result(reference):
    out, _ = reference
    urls = [str(path) for path in sorted(out.glob("*.tar"))]
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert {sample["json"]["key"] for sample in read} == GOOD
    assert all(sample["codes.npy"].dtype == np.int16 for sample in read)


@pytest.mark.parametrize(
    "changes",
    [{"num_workers": 2}, {"batch_sec": 0.1}, {"num_workers": 2, "batch_sec": 3.0, "window": 2}, {"window": 1}],
    ids=str,
)
def test_workers_batches_and_window_change_no_byte(hostile_corpus, reference, tmp_path, changes):
    assert run(hostile_corpus, tmp_path / "out", **changes) == reference[1]


def test_batches_differ_where_the_options_say_so(hostile_corpus, tmp_path):
    alone, together = TinyCodec(), TinyCodec()
    run(hostile_corpus, tmp_path / "alone", alone, batch_sec=0.1)
    run(hostile_corpus, tmp_path / "together", together)
    assert {shape[0] for shape in alone.batch_shapes} == {1}
    assert max(shape[0] for shape in together.batch_shapes) > 3


def test_a_batch_too_large_for_the_device_is_halved(hostile_corpus, reference, tmp_path):
    small = TinyCodec(memory_samples=int(1.6 * RATE))
    assert run(hostile_corpus, tmp_path / "out", small) == reference[1]
    with pytest.raises(UserError, match=r"cpu has no memory to encode 19_7_[\s\S]*lower max_sec"):
        run(hostile_corpus, tmp_path / "tiny", TinyCodec(memory_samples=RATE))


def test_several_tasks_share_the_shards(hostile_corpus, reference, tmp_path):
    out = tmp_path / "out"
    for task in (2, 0):
        run(hostile_corpus, out, task=task, num_tasks=3)
        assert not (out / "manifest.json").exists()
    assert run(hostile_corpus, out, task=1, num_tasks=3) == reference[1]


SLOW_RUN = """
from tiny_codec import TinyCodec, make_config
from slmkit.tokenization.job import tokenize

if __name__ == "__main__":
    tokenize(TinyCodec(pause_sec=0.05), make_config({source!r}, {out!r}, num_workers=2, batch_sec=0.1))
"""


def start_slow_run(source, out, tmp_path):
    script = tmp_path / "slow_run.py"
    script.write_text(SLOW_RUN.format(source=str(source), out=str(out)))
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[1:3])),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, str(script)], env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True
    )


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def group_is_gone(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["killed", "interrupted"])
def test_an_interrupted_job_goes_on_to_the_same_bytes(hostile_corpus, reference, tmp_path, how):
    out = tmp_path / "out"
    process = start_slow_run(hostile_corpus, out, tmp_path)
    wait_for(lambda: (out / "hostile-000001.index.json").exists() or process.poll() is not None)
    assert process.poll() is None, process.stderr.read()
    os.kill(process.pid, how)
    assert process.wait(timeout=120) != 0
    wait_for(lambda: group_is_gone(process.pid))  # the workers end too
    process.stderr.close()
    assert not (out / "manifest.json").exists()
    done = {path.name: path.stat().st_mtime_ns for path in out.glob("*.index.json")}
    assert 2 <= len(done) < 6
    (out / "hostile-000005.tar").write_bytes(b"half a shard")  # what a run killed between tar and index leaves
    (out / ".hostile-000005.tar.99.part").write_bytes(b"half a tar")
    assert run(hostile_corpus, out) == reference[1]
    assert {name: (out / name).stat().st_mtime_ns for name in done} == done


def test_a_finished_job_is_left_as_it_is(hostile_corpus, reference):
    out, before = reference
    codec = TinyCodec()
    assert run(hostile_corpus, out, codec) == before
    assert codec.batch_shapes == []


def test_another_job_in_the_directory_is_refused(hostile_corpus, reference, tmp_path):
    out, before = reference
    with pytest.raises(
        UserError, match=r"holds another job: settings\.shard_samples differs[\s\S]*got: +7[\s\S]*expected: 6"
    ):
        run(hostile_corpus, out, shard_samples=7)
    other = TinyCodec()
    other.spec = type(SPEC)(**{**SPEC.__dict__, "weights_sha256": "other"})
    with pytest.raises(UserError, match=r"holds another job: codec\.weights_sha256 differs"):
        run(hostile_corpus, out, other)
    (tmp_path / "photo.jpg").touch()
    for place in (tmp_path, tmp_path / "photo.jpg"):
        with pytest.raises(UserError, match=r"is not an empty directory and holds no job\.json"):
            run(hostile_corpus, place)
    assert hashes(out) == before


def test_what_a_run_killed_at_its_very_start_leaves_does_no_harm(tmp_path):
    (tmp_path / ".job.json.7.part").write_text("{")
    CorpusJob(tmp_path, "c", SPEC, {}, shard_samples=2)
    assert json.loads((tmp_path / "job.json").read_text())["codec"]["name"] == "tiny"


@pytest.mark.parametrize("damage", ["[]", "{}", '{"codec": 3, "settings": null}'])
def test_a_job_file_of_another_kind_is_refused(hostile_corpus, tmp_path, damage):
    (tmp_path / "job.json").write_text(damage)
    with pytest.raises(UserError, match=r"holds another job: codec\.name differs"):
        run(hostile_corpus, tmp_path)


def test_a_source_that_changed_since_is_noticed(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for i in range(8):
        add(source / f"{i}.wav", noise(0.3, i))
    run(source, out, shard_samples=4)
    add(source / "5a.wav", noise(0.3, 9))
    with pytest.raises(UserError, match=r"hostile-000001\.index\.json: the source has changed since"):
        run(source, out, shard_samples=4)
    for i in ("4", "5", "5a", "6", "7"):
        (source / f"{i}.wav").unlink()
    with pytest.raises(
        UserError, match=r"the source has changed since this job was begun[\s\S]*2 shards[\s\S]*1 shards"
    ):
        run(source, out, shard_samples=4)


def test_too_many_failures_end_the_job_and_keep_the_good_samples(hostile_corpus, reference, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"13 of 31 items of the source failed[\s\S]*unreadable 2[\s\S]*at most 0\.4"):
        run(hostile_corpus, out, max_failure_share=0.4)
    assert len(ledger(out)) == 13
    assert not (out / "manifest.json").exists()
    codec = TinyCodec()
    assert run(hostile_corpus, out, codec) == reference[1]
    assert codec.batch_shapes == []


def test_a_source_of_which_nothing_could_be_used_is_an_error(tmp_path):
    add(tmp_path / "source/a.wav", np.zeros(9000))
    with pytest.raises(UserError, match=r"1 of 1 items of the source failed[\s\S]*silent 1"):
        run(tmp_path / "source", tmp_path / "out", max_failure_share=1.0)
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(UserError, match=r"0 of 0 items of the source failed[\s\S]*an empty source"):
        run(tmp_path / "empty.jsonl", tmp_path / "none", kind="manifest")


def test_audio_too_short_for_a_frame_goes_to_the_ledger(tmp_path):
    add(tmp_path / "source/a.wav", noise(199 / RATE, 1))
    add(tmp_path / "source/b.wav", noise(200 / RATE, 1))
    run(tmp_path / "source", tmp_path / "out", min_sec=0.0)
    assert [(line["key"], line["reason"]) for line in ledger(tmp_path / "out")] == [("a", "too_short")]


def test_a_manifest_is_tokenized_with_its_extra_columns(tmp_path):
    add(tmp_path / "wavs/1.wav", noise(0.4, 1), text=None)
    rows = [
        {"wav": "wavs/1.wav", "text": "One.", "speaker": "s", "mood": "sad", "key": "k/1"},
        {"wav": "wavs/2.wav", "text": "Two."},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(tmp_path / "m.jsonl", tmp_path / "out", kind="manifest", columns={"path": "wav"}, language="en")
    (sample,) = map(ShardReader(Corpus.open(tmp_path / "out")).read, range(1))
    assert sample.key == "k/1"
    assert sample.meta == {
        "text": "One.",
        "speaker": "s",
        "language": "en",
        "seconds": 0.4,
        "source": "wavs/1.wav",
        "mood": "sad",
    }
    assert [(line["key"], line["reason"]) for line in ledger(tmp_path / "out")] == [("wavs/2", "missing")]


# --- a disk that fills up


def make_growing_corpus(root):
    """Shards of 2 that grow: 3 small ones, then one of several hundred KiB."""
    for i in range(8):
        add(root / f"{i}.wav", noise(0.5, i), text="x" * (300_000 if i >= 6 else 10))
    return root


def fill_up(source, out):
    config = make_config(source, out, shard_samples=2)
    with pytest.raises(UserError, match=r"cannot write .*hostile-000003\.tar: (No space left|File too large)"):
        tokenize(TinyCodec(), config)
    assert sorted(path.name for path in Path(out).iterdir()) == [
        *(f"hostile-{shard:06d}{suffix}" for shard in range(3) for suffix in (".index.json", ".tar")),
        "job.json",
    ]


def test_files_may_not_grow_but_finished_shards_stay_and_the_job_goes_on(tmp_path):
    source, out = make_growing_corpus(tmp_path / "source"), tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        fill_up(source, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert run(source, out, shard_samples=2) == run(source, tmp_path / "whole", shard_samples=2)


@pytest.fixture
def small_disk(tmp_path):
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", path], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk is not permitted")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_keeps_finished_shards_and_the_job_goes_on(tmp_path, small_disk):
    source, out = make_growing_corpus(tmp_path / "source"), small_disk / "out"
    fill_up(source, out)
    subprocess.run(["mount", "-o", "remount,size=8m", small_disk], check=True)
    assert run(source, out, shard_samples=2) == run(source, tmp_path / "whole", shard_samples=2)


# --- the directory of a job, and importing


def test_shards_follow_the_position_in_the_source_and_failures_leave_gaps(tmp_path):
    job = CorpusJob(tmp_path / "out", "c", SPEC, {}, shard_samples=2)
    items = [Failure(str(i), "empty", "") for i in range(5)]
    chunks = list(job.remaining(items))
    assert [(shard, [item.key for item in chunk]) for shard, chunk in chunks] == [
        (0, ["0", "1"]),
        (1, ["2", "3"]),
        (2, ["4"]),
    ]
    for shard, chunk in chunks:
        assert len(job.write(shard, chunk)) == 0
    assert list(job.remaining(items)) == []


def make_published(path):
    lines = [
        {"uttid": "ntp 1", "text": "One.", "tokens": "<a1><b2><c3><a4><b5><c6>"},
        {"uttid": "bad", "text": "Two.", "tokens": "<a1><b2>"},
        {"uttid": "mtp", "text": "Three.", "tokens": {"head_a_1": "<a7>", "head_b_1": "<b8>", "head_c_1": "<c1023>"}},
        {"uttid": "mtp", "text": "Again.", "tokens": "<a1><b2><c3>"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_published_codes_become_a_corpus(tmp_path):
    source = make_published(tmp_path / "x.jsonl")
    values = {"corpus": "demo", "source": [str(source)], "shard_samples": 3, "max_failure_share": 0.5}
    for name in ("a", "b"):
        import_codes(from_dict(ImportConfig, {**values, "out": str(tmp_path / name)}))
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    corpus = Corpus.open(tmp_path / "a")
    samples = [ShardReader(corpus).read(i) for i in range(len(corpus))]
    assert [(sample.key, sample.codes.tolist(), sample.speaker) for sample in samples] == [
        ("ntp 1", [[1, 4], [2, 5], [3, 6]], None),
        ("mtp", [[7], [8], [1023]], None),
    ]
    assert [(line["key"], line["reason"]) for line in ledger(tmp_path / "a")] == [
        ("bad", "bad_tokens"),
        ("mtp", "duplicate_key"),
    ]
    assert (corpus.codec.name, corpus.codec.weights_sha256, corpus.codec.speaker_dim) == ("facodec", "", 0)
    assert [stream.name for stream in corpus.codec.lm_streams] == ["content_1", "content_2", "prosody"]


def test_options_that_cannot_be_are_refused_all_at_once(tmp_path):
    bad = {"corpus": "a b", "min_sec": 30, "num_workers": -1, "batch_sec": 0, "window": 0, "decode_limit_sec": 0}
    with pytest.raises(ConfigError) as caught:
        make_config("x", "y", **bad, task=1, max_failure_share=2, shard_samples=0)
    assert len(caught.value.problems) == 9
    for name in (*bad, "task", "max_failure_share", "shard_samples"):
        assert f"{name}: got" in str(caught.value)
