"""The job as a whole: the same bytes however it is run, hostile inputs, interruption, a full disk, several tasks."""

import json
import os
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
from tokenization.hostile import EXPECTED_FAILURES, GOOD, RATE, add, hashes, ledger, make_hostile, noise, run

from slmkit.data.index import Corpus
from slmkit.data.shards import ShardReader
from slmkit.errors import ConfigError, UserError
from slmkit.tokenization.job import finalize_corpus, plan_corpus


@pytest.fixture(scope="module")
def hostile_corpus(tmp_path_factory):
    return make_hostile(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def reference(hostile_corpus, tmp_path_factory):
    """(directory, hashes) of an undisturbed run in one process."""
    out = tmp_path_factory.mktemp("reference") / "out"
    return out, run(hostile_corpus, out)


def test_every_bad_file_is_a_ledger_line_and_every_good_one_a_sample(reference):
    out, _ = reference
    lines = ledger(out)
    assert {line["key"]: line["reason"] for line in lines} == EXPECTED_FAILURES
    assert len(lines) == len(EXPECTED_FAILURES)
    assert all(line["detail"] for line in lines)
    corpus = Corpus.open(out)
    assert sorted(corpus.key(i) for i in range(len(corpus))) == sorted(GOOD)
    counts = json.loads((out / "manifest.json").read_text())["counts"]
    assert (counts["utterances"], counts["samples"], counts["failures"]) == (36, 20, 16)
    planned = ["ape", "unheard", "two_formats", "unsaid", "old/archive.tar.gz"]  # by folder, audio last
    assert [line["key"] for line in lines] == [*planned, *sorted(EXPECTED_FAILURES.keys() - set(planned))]


def test_samples_hold_what_the_codec_makes_of_the_file(reference, hostile_corpus):
    corpus = Corpus.open(reference[0])
    reader = ShardReader(corpus)
    samples = {sample.key: sample for sample in (reader.read(i) for i in range(len(corpus)))}
    sample = samples["19_7_000003_000000"]
    wave, _ = soundfile.read(hostile_corpus / "19/7/19_7_000003_000000.wav", dtype="float32")
    blocks = wave[: len(wave) // 200 * 200].reshape(-1, 200)
    np.testing.assert_allclose(sample.codes[0], np.abs(blocks).mean(1) * 1023, atol=1.01)
    np.testing.assert_allclose(sample.speaker, [wave.mean(), np.abs(wave).max()], atol=1e-6)
    checks = sample.meta.pop("checks")
    assert checks["chars_per_sec"] == pytest.approx(len("Words 3 é.") / (len(wave) / RATE), rel=1e-3)
    assert (checks["clipped"], checks["silence"], checks["frames_off"]) == (0.0, 0.0, pytest.approx(0.0, abs=1.0))
    assert sample.meta == {
        "text": "Words 3 é.",
        "speaker": "19",
        "language": "",
        "seconds": len(wave) / RATE,
        "source": "19/7/19_7_000003_000000.wav",
    }
    assert samples["48k"].codes.shape == (2, 40)
    assert samples["48k"].meta["seconds"] == 0.5
    assert samples["b/twice"].meta["source"] == "b/twice.wav"


def test_webdataset_alone_reads_the_result(reference):
    out, _ = reference
    urls = [str(path) for path in sorted(out.glob("*.tar"))]
    read = list(webdataset.WebDataset(urls, shardshuffle=False).decode())
    assert {sample["json"]["key"] for sample in read} == GOOD
    assert all(sample["codes.npy"].dtype == np.uint16 for sample in read)


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
    with pytest.raises(UserError, match=r"holds no plan[\s\S]*slmkit tokenize plan"):
        run(hostile_corpus, out, task=2, num_tasks=3)
    plan_corpus(SPEC, make_config(hostile_corpus, out))
    for task in (2, 0):
        run(hostile_corpus, out, task=task, num_tasks=3)
        with pytest.raises(UserError, match=r"is incomplete: \d of 6 shards are missing[\s\S]*no shard [\d, ]*4?"):
            finalize_corpus(out, 0.6)
    run(hostile_corpus, out, task=1, num_tasks=3)
    assert not (out / "manifest.json").exists()
    finalize_corpus(out, 0.6)
    assert hashes(out) == reference[1]


def test_a_task_may_be_run_with_another_number_of_tasks(hostile_corpus, reference, tmp_path):
    out = tmp_path / "out"
    plan_corpus(SPEC, make_config(hostile_corpus, out))
    for task, num_tasks in ((1, 2), (3, 4), (0, 4)):
        run(hostile_corpus, out, task=task, num_tasks=num_tasks)
    assert run(hostile_corpus, out) == reference[1]


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


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGKILL, id="killed"),
        pytest.param(signal.SIGINT, id="interrupted", marks=pytest.mark.full),
    ],
)
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
    assert 2 <= len(done) < 5
    (out / "hostile-000004.tar").write_bytes(b"half a shard")  # what a run killed between tar and index leaves
    (out / ".hostile-000004.tar.99.part").write_bytes(b"half a tar")
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


@pytest.mark.parametrize("damage", ["[]", "{}", '{"codec": 3, "settings": null}'])
def test_a_job_file_of_another_kind_is_refused(hostile_corpus, tmp_path, damage):
    (tmp_path / "job.json").write_text(damage)
    with pytest.raises(UserError, match=r"holds another job: codec\.name differs"):
        run(hostile_corpus, tmp_path)


def test_the_source_is_read_once_and_files_that_vanish_go_to_the_ledger(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for i in range(8):
        add(source / f"{i}.wav", noise(0.3, i))
    plan_corpus(SPEC, make_config(source, out, shard_samples=4))
    add(source / "5a.wav", noise(0.3, 9))
    (source / "6.wav").unlink()
    run(source, out, shard_samples=4)
    corpus = Corpus.open(out)
    assert [corpus.key(i) for i in range(len(corpus))] == ["0", "1", "2", "3", "4", "5", "7"]
    assert [(line["key"], line["reason"]) for line in ledger(out)] == [("6", "missing")]


def test_too_many_failures_end_the_job_and_keep_the_good_samples(hostile_corpus, reference, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"16 of 36 items of the source failed[\s\S]*unreadable 2[\s\S]*at most 0\.4"):
        run(hostile_corpus, out, max_failure_share=0.4)
    assert len(ledger(out)) == 16
    assert not (out / "manifest.json").exists()
    codec = TinyCodec()
    assert run(hostile_corpus, out, codec) == reference[1]
    assert codec.batch_shapes == []


def test_what_the_plan_refuses_is_judged_before_anything_is_encoded(tmp_path):
    source, out, codec = tmp_path / "source", tmp_path / "out", TinyCodec()
    add(source / "a/1.wav", noise(0.3, 1))
    add(source / "b/1.wav", noise(0.3, 2))
    (source / "b.tar.gz").touch()
    message = r"1 of 3 items of the source failed\n.*unsupported 1; such as: b\.tar\.gz is an archive[\s\S]*unpack it"
    for _ in range(2):  # the same command plans again
        with pytest.raises(UserError, match=message + r"[\s\S]*at most 0\.3\n.*out/failures\.jsonl; mend the source"):
            run(source, out, codec, max_failure_share=0.3)
        assert [line["key"] for line in ledger(out)] == ["b.tar.gz"]
        assert sorted(path.name for path in out.iterdir()) == ["failures.jsonl", "job.json"]
    assert codec.batch_shapes == []
    with pytest.raises(
        UserError, match=r"no plan: too many items[\s\S]*`slmkit tokenize run` again.*max_failure_share"
    ):
        finalize_corpus(out, 1.0)
    plan_corpus(SPEC, make_config(source, out, max_failure_share=0.4))
    with pytest.raises(UserError, match=message):  # also of a plan that another limit let through
        run(source, out, codec, max_failure_share=0.3)
    (source / "b.tar.gz").unlink()
    run(source, out, codec, max_failure_share=0.3)
    corpus = Corpus.open(out)
    assert [corpus.key(i) for i in range(len(corpus))] == ["a/1", "b/1"]


def test_a_plan_of_which_shards_are_written_is_not_removed(tmp_path):
    source, out = tmp_path / "source", tmp_path / "out"
    for i in range(3):
        add(source / f"{i}.wav", noise(0.3, i), text="x" if i else None)
    run(source, out, max_failure_share=0.5)
    (out / "manifest.json").unlink()
    with pytest.raises(
        UserError, match=r"1 of 3 items of the source failed\n.*such as: 0\.wav: beside it lies no 0\.norm"
    ):
        run(source, out, max_failure_share=0.3)
    assert (out / "plan/plan.json").exists()
    (out / "plan/refused.jsonl").unlink()
    for limit in (0.3, 0.5):  # it is asked for an example, and for the ledger of the corpus
        with pytest.raises(UserError, match=r"cannot read .*plan/refused\.jsonl: No such file"):
            run(source, out, max_failure_share=limit)


def test_another_layout_is_suggested_where_it_reads_the_source(tmp_path):
    source = tmp_path / "source"
    add(source / "EN/a.wav", noise(0.3, 1), text=None)
    (source / "EN/a.json").write_text('{"text": "A."}')
    asked = r"1 of 1 items of the source failed[\s\S]*no transcripts; did you mean kind=emilia\?$"
    with pytest.raises(UserError, match=asked):
        run(source, tmp_path / "a", max_failure_share=1.0)
    with pytest.raises(UserError, match=r"has no file wav\.scp\n.*expected: [\s\S]*next: +did you mean kind=emilia\?$"):
        run(source, tmp_path / "b", kind="kaldi")
    (source / "EN/a.json").unlink()
    (source / "lines.jsonl").write_text('{"path": "EN/a.wav", "text": "A."}\n')
    with pytest.raises(UserError, match=r"no transcripts; did you mean kind=manifest and source=.*lines\.jsonl\?$"):
        run(source, tmp_path / "c")
    (source / "lines.jsonl").unlink()
    (source / "EN/a.wav").rename(source / "EN/a\x1b\n.wav")
    with pytest.raises(UserError, match=r"1 of 1 items .*\n.*such as: EN/a \.wav: .*[\s\S]*libritts is\n +DIR/19/198/"):
        run(source, tmp_path / "d")
    with pytest.raises(UserError, match=r"has no file wav\.scp[\s\S]*check the path"):
        run(source, tmp_path / "e", kind="kaldi")


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
    assert sample.meta.pop("checks").keys() == {"clipped", "silence", "dc", "chars_per_sec", "frames_off"}
    assert sample.meta == {
        "text": "One.",
        "speaker": "s",
        "language": "en",
        "seconds": 0.4,
        "source": "wavs/1.wav",
        "mood": "sad",
    }
    assert [(line["key"], line["reason"]) for line in ledger(tmp_path / "out")] == [("wavs/2", "missing")]


def test_options_that_cannot_be_are_refused_all_at_once(tmp_path):
    bad = {"corpus": "a b", "min_sec": 30, "num_workers": -1, "batch_sec": 0, "window": 0, "decode_limit_sec": 0}
    with pytest.raises(ConfigError) as caught:
        make_config("x", "y", **bad, task=1, max_failure_share=2, shard_samples=0)
    assert len(caught.value.problems) == 9
    for name in (*bad, "task", "max_failure_share", "shard_samples"):
        assert f"- {name}" in str(caught.value)
