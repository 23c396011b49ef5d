"""Voices of a corpus, and what a model notes of its codec."""

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic import codec_spec, write_corpus, write_samples, write_voices

from slmkit.data.shards import Sample
from slmkit.data.sources import open_source
from slmkit.errors import UserError
from slmkit.model.companions import (
    SOURCE_FILE,
    check_codec_beside,
    choose_voices,
    codec_beside,
    codec_source,
    copy_companions,
    voices_beside,
    write_companions,
)


def test_four_speakers_of_the_whole_corpus(tmp_path: Path) -> None:
    source = open_source(write_voices(tmp_path / "c", 200, num_voices=8), "tts")
    voices = choose_voices(source)
    assert [voice.name for voice in voices] == [voice.name for voice in choose_voices(source)]
    assert len({voice.name for voice in voices}) == 4
    for voice in voices:
        keys = {source.samples.key(i): i for i in range(len(source))}
        sample = source.reader.read(keys[voice.origin["key"]])
        assert sample.speaker is not None
        assert np.array_equal(sample.speaker, voice.vector)
        assert sample.meta["speaker"] == voice.origin["speaker"] == voice.name
    left = choose_voices(source, without={voice.name for voice in voices})
    assert len({voice.name for voice in [*voices, *left]}) == 8
    assert {voice.name for voice in choose_voices(source, num_samples=2)} == {"v0", "v1"}


def test_names_are_safe_and_the_longest_utterance_speaks(tmp_path: Path) -> None:
    samples = []
    for i, speaker in enumerate(["a/b c", "", "日本", "A/B C", "a/b c"]):
        vector = np.full(8, i, np.float32)
        meta = {"text": "x", "speaker": speaker, "seconds": 1.0}
        samples.append(Sample(f"u{i}", np.zeros((3, 5 + i), np.uint16), vector, meta))
    voices = choose_voices(open_source(write_samples(tmp_path / "c", samples, codec_spec()).directory, "tts"))
    assert [(voice.name, voice.vector[0]) for voice in voices] == [
        ("a_b_c", 4.0),
        ("voice", 1.0),
        ("voice-1", 2.0),
        ("A_B_C-1", 3.0),
    ]
    spec = codec_spec(speaker_dim=0)
    write_companions(tmp_path, spec, voices=voices)
    assert [*voices_beside(tmp_path)] == ["A_B_C-1", "a_b_c", "voice", "voice-1"]
    assert json.loads((tmp_path / "voices" / "voices.json").read_text())["voice-1"]["speaker"] == "日本"
    assert choose_voices(open_source(write_corpus(tmp_path / "bare", 5, spec=spec).directory, "tts")) == []


def test_samples_that_are_damaged_give_no_voice(tmp_path: Path) -> None:
    directory = write_voices(tmp_path / "c", 20, num_voices=2)
    for tar in directory.glob("*.tar"):
        tar.write_bytes(b"0" * tar.stat().st_size)
    assert choose_voices(open_source(directory, "tts")) == []


def test_a_note_says_where_the_codec_is(tmp_path: Path) -> None:
    model, copy, codec = (tmp_path / name for name in ("model", "copy", "codec"))
    for path in (model, copy, codec):
        path.mkdir()
    assert codec_source(model) == ""
    write_companions(model, codec_spec(), codec_source=str(codec))
    copy_companions(model, copy)
    assert codec_beside(copy) == codec
    check_codec_beside(copy, codec_spec(), codec)
    with pytest.raises(UserError, match=r"(?s)is not the codec any more.*got: +weights_sha256 1\n.*weights_sha256 0"):
        check_codec_beside(copy, codec_spec().__class__(**{**codec_spec().__dict__, "weights_sha256": "1"}), codec)
    (model / "voices").mkdir()
    (model / "voices" / "anna.wav").touch()
    assert voices_beside(model) == {"anna": str(model / "voices" / "anna.wav")}
    (model / "voices" / "anna.npy").touch()
    with pytest.raises(UserError, match=r"(?s)two voices have the same name.*rename .*anna.npy or .*anna.wav"):
        voices_beside(model)
    for damaged in ("[]", '{"source": 1, "weights_sha256": "", "speaker_sha256": ""}', '{"source": "x"}'):
        (model / SOURCE_FILE).write_text(damaged)
        with pytest.raises(UserError, match="does not say where a codec is"):
            codec_beside(model)
