"""`slmkit bench codecs`: a row for each codec, agreement beside the speed."""

import json

import numpy as np
import pytest
from codec.families import family_directory
from twins.plain_codecs import CLASSES

from slmkit.bench.codecs import bench_directory, describe, reach_in_words
from slmkit.cli.main import main
from slmkit.codec.melvq import MelVQ
from slmkit.codec.stream import JOINED_BOUND
from slmkit.errors import UserError

OTHERS = ("encodec", "wavtokenizer", "speechtokenizer", "bigcodec", "snac_44khz")


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    directory = tmp_path_factory.mktemp("melvq") / "codec"
    MelVQ.fit([np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)], 0, num_entries=16).save(directory)
    return directory


@pytest.mark.parametrize("name", ["dac", *(pytest.param(name, marks=pytest.mark.full) for name in OTHERS)])
def test_a_codec_is_its_plain_loop(name):
    found = bench_directory(family_directory(name), "cpu", 0.4, batch=2, rounds=1)
    assert found["equal_codes"] == 1
    assert found["wave_difference"] < (1e-6 if name in CLASSES else 1e-5)  # the same network, or one of our own
    streams = name != "wavtokenizer"
    assert (found["stream_difference"] is not None) == streams
    assert not streams or found["stream_difference"] <= JOINED_BOUND
    assert all(found[f"{task}_audio_sec_per_sec"] > 0 for task in ("encode", "plain_encode", "decode", "plain_decode"))
    shown = [str(found["sample_rate"]), f"{found['frame_rate']:.4g}", str(found["streams"])]
    assert describe(found).split()[2:5] == shown


def test_without_a_plain_loop_the_rest_is_shown(fitted, capsys):
    words = ["bench", "codecs", str(fitted), "--seconds", "0.5", "--repeats", "1", "--device", "cpu"]
    assert main(words) == 0
    head, row = capsys.readouterr().out.splitlines()[1:]
    assert head.split()[:2] == ["codec", "Hz"]
    assert row.split()[6] == row.split()[8] == "-"
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[0]
    assert found["plain_encode_audio_sec_per_sec"] is found["equal_codes"] is None


def test_what_is_no_codec_or_takes_no_time_is_refused(fitted, tmp_path):
    with pytest.raises(UserError, match="is not a codec directory"):
        bench_directory(tmp_path, "cpu", 1.0)
    with pytest.raises(UserError, match="too short to encode"):
        bench_directory(fitted, "cpu", 0.0)
    with pytest.raises(UserError, match="nothing would be timed"):
        bench_directory(fitted, "cpu", 0.5, rounds=0)


def test_reach_in_words():
    assert [reach_in_words(reach) for reach in [(10, 0), (None, 6), (None, None)]] == ["10 + 0", "all + 6", "all"]
