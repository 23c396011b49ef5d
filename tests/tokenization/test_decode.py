"""Decoding workers: order, crashes, hangs, exceptions. Nothing hangs and no good item is lost."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile

from slmkit.corpora.base import Audio, Cut, Utterance
from slmkit.data.ledger import Failure
from slmkit.errors import UserError
from slmkit.tokenization import workers as workers_module
from slmkit.tokenization.decode import Decoded, Decoding, decode, decode_in_order, significant
from slmkit.tokenization.workers import Workers

RATE = 8000


@pytest.fixture(scope="module", autouse=True)
def recordings(tmp_path_factory):
    """Files called 1 to 59, of noise seeded with that number."""
    directory = tmp_path_factory.mktemp("recordings")
    for seed in range(1, 60):
        samples = np.random.default_rng(seed).uniform(-0.5, 0.5, RATE // 10)
        soundfile.write(directory / str(seed), samples, RATE, format="WAV")
    before = os.getcwd()
    os.chdir(directory)
    yield directory
    os.chdir(before)


def utterance(key, path=None):
    return Utterance(key=key, audio=Audio(path or str(len(key))), text="x", source=key)


def test_a_file_much_longer_than_its_source_says_is_refused(tmp_path):
    """It holds more than the text: often that of a part."""
    path = str(tmp_path / "a.wav")
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, 5 * RATE), RATE)
    decoding = Decoding(sample_rate=RATE)
    outcomes = {}
    for stated in (1.5, 2.5, 4.0, 6.0, None):
        found = decode(utterance("a", path)._replace(seconds=stated), decoding)
        outcomes[stated] = found.reason if isinstance(found, Failure) else found.checks.get("seconds_off")
    assert outcomes == {1.5: "longer_than_stated", 2.5: "longer_than_stated", 4.0: 1.0, 6.0: -1.0, None: None}
    part = utterance("a", path)._replace(seconds=1.5, cut=Cut(0.0, 1.5, 0.0, 1.5))
    assert isinstance(decode(part, decoding), Decoded)


def test_a_channel_is_decoded_alone(tmp_path):
    """Two speakers of a telephone call, each in a channel."""
    both = np.random.default_rng(0).uniform(-0.5, 0.5, (RATE, 2))
    soundfile.write(tmp_path / "both.wav", both, RATE)
    waves = {}
    for channel in (0, 1):
        soundfile.write(tmp_path / "alone.wav", both[:, channel], RATE)
        item = utterance("a", tmp_path / "both.wav")
        item = item._replace(audio=item.audio._replace(channel=channel))
        waves[channel] = decode(item, Decoding(sample_rate=RATE)).wave
        alone = decode(utterance("a", tmp_path / "alone.wav"), Decoding(sample_rate=RATE)).wave
        assert np.array_equal(waves[channel], alone)
    assert not np.array_equal(waves[0], waves[1])


class Crashing:
    """Stands for a file that kills the process that decodes it."""

    def __fspath__(self):
        os._exit(11)


class Stuck:
    """Stands for a file on which a decoder never ends."""

    def __fspath__(self):
        time.sleep(1000)


class Broken:
    """Stands for a bug in the decoder."""

    def __fspath__(self):
        raise ZeroDivisionError("a bug")


def decode_all(items, **options):
    settings = Decoding(sample_rate=RATE, limit_sec=options.pop("limit_sec", 60.0))
    return list(decode_in_order(enumerate(items), settings, **{"num_workers": 2, "ahead": 4, **options}))


def test_results_come_in_order_with_their_tags():
    items = [utterance("a" * n) for n in range(1, 12)] + [Failure("f", "empty", "")]
    for workers, ahead in ((0, 1), (2, 1), (2, 100)):
        results = decode_all(items, num_workers=workers, ahead=ahead)
        assert [tag for tag, _ in results] == list(range(12))
        assert [result.utterance.key for _, result in results[:-1]] == [item.key for item in items[:-1]]
        assert results[-1][1] == items[-1]
        for _, result in results[:-1]:
            np.testing.assert_array_equal(result.wave, decode(result.utterance, Decoding(sample_rate=RATE)).wave)


def test_a_file_that_crashes_the_decoder_loses_only_itself():
    items = [utterance(f"good{i}") for i in range(8)]
    items[3] = utterance("crash", Crashing())
    items[6] = utterance("crash again", Crashing())
    results = [result for _, result in decode_all(items)]
    assert [isinstance(result, Decoded) for result in results] == [True, True, True, False, True, True, False, True]
    assert [(result.key, result.reason) for result in results if isinstance(result, Failure)] == [
        ("crash", "crashed"),
        ("crash again", "crashed"),
    ]


def test_a_file_on_which_the_decoder_hangs_loses_only_itself():
    items = [utterance("good"), utterance("stuck", Stuck()), utterance("last")]
    begin = time.monotonic()
    results = [result for _, result in decode_all(items, limit_sec=1.0)]
    assert [type(result) for result in results] == [Decoded, Failure, Decoded]
    assert results[1].reason == "crashed"
    assert "more than 1.0 s" in results[1].detail
    assert time.monotonic() - begin < 60


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bug_in_decoding_stops_the_job_at_once(workers):
    with pytest.raises(ZeroDivisionError, match="a bug"):
        decode_all([utterance("a"), utterance("b", Broken()), utterance("c")], num_workers=workers)


def test_names_the_system_refuses_are_missing_files(tmp_path):
    for path in (tmp_path / "none.wav", tmp_path, tmp_path / ("x" * 300)):
        failure = decode(utterance("a", path), Decoding(sample_rate=RATE))
        assert (failure.key, failure.reason) == ("a", "missing")


def test_what_is_seen_of_an_utterance_stands_beside_it(tmp_path):
    wave = 0.5 * np.sin(2 * np.pi * 200 * np.arange(2 * RATE) / RATE) + 0.03
    wave[:RATE] = 0.03
    wave[-160::2], wave[-159::2] = 1.0, -1.0
    soundfile.write(tmp_path / "a.wav", wave, RATE)
    item = Utterance(key="a", audio=Audio(str(tmp_path / "a.wav")), text="hello", source="a", seconds=1.7)
    result = decode(item, Decoding(sample_rate=RATE))
    assert result.checks == {
        "clipped": 0.01,
        "silence": 0.5,
        "dc": pytest.approx(0.03, abs=0.001),
        "chars_per_sec": 2.5,
        "seconds_off": 0.3,
    }
    assert json.loads(json.dumps(result.checks)) == result.checks


def test_only_whole_files_are_compared_with_the_length_their_source_gives():
    item = utterance("a" * 7)
    assert "seconds_off" not in decode(item, Decoding(sample_rate=RATE)).checks
    cut = item._replace(seconds=0.05, cut=Cut(0.02, 0.06, 0.0, 0.1))
    assert "seconds_off" not in decode(cut, Decoding(sample_rate=RATE)).checks


def test_numbers_are_rounded_to_four_digits():
    assert [significant(x) for x in (0.123456, -1234567.0, 1e-9 / 3, -0.0)] == [0.1235, -1235000.0, 3.333e-10, 0.0]
    assert str(significant(-0.0)) == "0.0"


def test_a_long_recording_can_be_used_only_with_time_stamps(tmp_path):
    decoding = Decoding(sample_rate=RATE, max_sec=0.05)
    failure = decode(utterance("a"), decoding)
    assert failure.reason == "too_long"
    assert (
        "its source gives no time stamps to cut it by; got 0.100 s or more; expected at most 0.05 s" in failure.detail
    )
    item = utterance("a")
    assert len(decode(item._replace(cut=Cut(0.02, 0.06, 0.0, 0.1)), decoding).wave) <= 0.05 * RATE
    failure = decode(item._replace(cut=Cut(0.02, 0.08, 0.0, 0.1)), decoding)
    assert failure.reason == "too_long"
    assert "time stamps" not in failure.detail


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        ("OGG", "OPUS"),
        *(pytest.param(*kind, marks=pytest.mark.full) for kind in (("MP3", None), ("OGG", "VORBIS"), ("FLAC", None))),
    ],
)
def test_cuts_of_one_recording_are_the_same_for_any_number_of_workers(tmp_path, kind, subtype):
    wave = np.random.default_rng(0).normal(0, 0.1, 30 * RATE)
    path = tmp_path / "long"
    soundfile.write(path, wave, RATE, format=kind, subtype=subtype)
    cuts = [Cut(second, second + 0.8, second - 0.1, second + 0.9) for second in (1.0, 20.5, 21.4, 3.3, 12.0, 28.0)]
    items = [utterance(f"{c.start_sec}", str(path))._replace(cut=c) for c in cuts]
    alone, several = ([result for _, result in decode_all(items, num_workers=n)] for n in (0, 2))
    for one, other in zip(alone, several, strict=True):
        assert np.array_equal(one.wave, other.wave)
        assert one.checks == other.checks
        assert 0.8 * RATE <= len(one.wave) <= RATE


def test_what_decoders_in_c_write_stays_out_of_the_terminal():
    """Python's own messages still come through."""
    code = """
import os, sys
from slmkit.tokenization import workers
workers._end_with_parent = lambda: None
workers.start_worker()
os.write(2, b"from C")
print("Python", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "Python\n"


def test_processes_that_never_start_are_an_error_and_no_file_is_blamed(monkeypatch):
    monkeypatch.setattr(workers_module, "_serve", os._exit)
    with pytest.raises(UserError, match="worker processes cannot be started"):
        decode_all([utterance("a"), utterance("b")])


def _large(size):
    return b"x" * size


def _process():
    return os.getpid()


@pytest.mark.parametrize("writes", [False, True], ids=["waits for work", "hands over a result"])
def test_a_worker_that_is_killed_leaves_nobody_waiting(writes):
    """As the system does when it has no memory left; a result is larger than a pipe holds."""
    with contextlib.closing(Workers(2)) as workers:
        process = workers.submit(_process).result()
        futures = [workers.submit(_large, 2**24 if writes else 1) for _ in range(20)]
        os.kill(process, signal.SIGKILL)
        assert all(len(future.result(timeout=60)) for future in futures)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_closing_ends_what_still_runs():
    """As a command does that is told to stop while a decoder does not come back."""
    with contextlib.closing(Workers(1)) as workers:
        process = workers.submit(_process).result()
        stuck = workers.submit(time.sleep, 20)
        while not stuck.running():
            time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
