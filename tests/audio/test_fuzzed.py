"""Damaged files: each gives a wave or a reason, in a process of its own, since a decoder in C may crash or hang."""

import collections
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from audio.encoding import REASONS
from fuzzed_audio import HARMS, KINDS, fuzzed, good

from slmkit.audio.io import read_audio

COUNT = 150
PLACES = (Path(__file__).parents[1], Path(__file__).parents[2])  # of fuzzed_audio, of slmkit
LIMIT_SEC = 300  # for all of them; a file takes a hundredth of a second
READER = """
import io, json
import numpy as np
from fuzzed_audio import fuzzed
from slmkit.audio.io import read_recording
from slmkit.errors import BadSample

def outcome(content, cut):
    try:
        found = read_recording(io.BytesIO(content), 16000, max_sec=60, cut=cut)
    except BadSample as error:
        return error.reason
    assert found.wave.dtype == np.float32 and len(found.wave)
    assert np.isfinite([*found.wave, *found.mono, *found[2:]]).all()
    return "wave"

for name, content, surely_bad in fuzzed({seed}, {count}):
    print(json.dumps([name, surely_bad, outcome(content, None), outcome(content, (0.1, 0.2, 0.0, 0.25))]), flush=True)
"""


@pytest.fixture(scope="module")
def outcomes():
    code = READER.format(seed=0, count=COUNT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, PLACES))}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=LIMIT_SEC, check=False, env=environment
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"stopped after {lines[-1:]}: {done.stderr[-2000:]}"
    return lines


def test_each_damaged_file_gives_a_wave_or_a_reason(outcomes):
    assert len(outcomes) == COUNT
    assert {result for _, _, *results in outcomes for result in results} <= {"wave", *REASONS}


def test_surely_bad_files_give_no_wave(outcomes):
    judged = [(name, whole) for name, surely_bad, whole, _ in outcomes if surely_bad]
    assert len(judged) > COUNT / 4
    assert [name for name, whole in judged if whole == "wave"] == []


def test_the_files_reach_most_reasons_and_some_survive(outcomes):
    counts = collections.Counter(whole for _, _, whole, _ in outcomes)
    assert min(counts[name] for name in ("wave", "unreadable", "truncated", "silent", "non_finite")) > 0
    assert any(cut == "wave" for _, _, _, cut in outcomes)


@pytest.mark.full
def test_the_files_depend_on_the_seed_alone_and_show_every_harm():
    files = list(fuzzed(3, 120))
    assert files == list(fuzzed(3, 120))
    assert files[:5] == list(fuzzed(3, 5))
    assert files != list(fuzzed(4, 120))
    assert len({name for name, _, _ in files}) == 120
    assert {name.split("-")[1].split(".")[0] for name, _, _ in files} == {h.__name__.strip("_") for h, _, _ in HARMS}


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_before_they_are_harmed_are_good(kind):
    for seed in range(10):
        wave = read_audio(io.BytesIO(good(kind, np.random.default_rng(seed))), 16000)
        assert 0.3 <= len(wave) / 16000 <= 1.6
