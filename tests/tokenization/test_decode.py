"""Decoding workers: order, crashes, hangs, exceptions. Nothing hangs and no good item is lost."""

import os
import time

import numpy as np
import pytest
import soundfile

from slmkit.data.importers.base import Audio, Utterance
from slmkit.data.ledger import Failure
from slmkit.errors import UserError
from slmkit.tokenization import decode as decode_module
from slmkit.tokenization.decode import Decoded, Decoding, decode, decode_in_order

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


def _never_starts():
    os._exit(1)


def test_processes_that_never_start_are_an_error_and_no_file_is_blamed(monkeypatch):
    monkeypatch.setattr(decode_module, "_start_worker", _never_starts)
    with pytest.raises(UserError, match="decoding processes cannot be started"):
        decode_all([utterance("a"), utterance("b")])
