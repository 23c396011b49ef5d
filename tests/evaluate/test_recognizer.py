"""The recognizer: a tiny Whisper that was trained to hear tones, and one with random weights."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_whisper import RATE, SENTENCES, WINDOW_SEC, save_tiny_whisper, tones

from slmkit.errors import UserError
from slmkit.evaluate.recognizer import Recognizer, windows


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("whisper") / "trained"
    save_tiny_whisper(path, steps=120)
    return path


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    path = tmp_path_factory.mktemp("whisper") / "english"
    save_tiny_whisper(path, steps=0, multilingual=False)
    return path


@pytest.fixture
def damaged(untrained, tmp_path):
    return shutil.copytree(untrained, tmp_path / "damaged")


@pytest.mark.full
def test_it_hears_what_was_said(trained):
    recognizer = Recognizer.load(trained)
    for rate in (RATE, 44100):
        assert [recognizer.text(tones(words, 99, rate), rate) for words in SENTENCES] == list(SENTENCES)
    assert recognizer.text(np.zeros(0, np.float32), RATE) == ""
    assert recognizer.spellings == {"colour": "color"}


@pytest.mark.full
def test_long_audio_is_heard_in_windows(trained):
    sentences = ["low high", "high low", "low", "high"]
    wave = np.concatenate([tones(words, 50 + i) for i, words in enumerate(sentences)])
    assert len(wave) > 2 * WINDOW_SEC * RATE
    assert Recognizer.load(trained).text(wave, RATE) == " ".join(sentences)


@given(num_samples=st.integers(0, 9000), seed=st.integers(0, 99))
def test_windows_are_the_wave(num_samples, seed):
    wave = np.random.default_rng(seed).standard_normal(num_samples).astype(np.float32)
    parts = list(windows(wave, 2000, 8000))
    assert np.array_equal(np.concatenate([np.zeros(0, np.float32), *parts]), wave)
    assert all(1666 <= len(part) <= 2000 for part in parts[:-1])


def test_windows_are_cut_where_it_is_quiet():
    wave = np.ones(5000, np.float32) * np.resize([1, -1], 5000)
    wave[1700:1900] = 0
    first, *_ = windows(wave, 2000, 8000)
    assert 1700 < len(first) < 1900


@pytest.mark.parametrize("kind", [pytest.param("trained", marks=pytest.mark.full), "untrained"])
def test_naive_twin(kind, request):
    """The most likely token after token, asked in English, though the model's own settings say two beams."""
    recognizer = Recognizer.load(request.getfixturevalue(kind))
    model, tokenizer = recognizer.pipeline.model, recognizer.pipeline.tokenizer
    asked = ["<|startoftranscript|>", *(["<|en|>", "<|transcribe|>"] if kind == "trained" else []), "<|notimestamps|>"]
    wave = np.random.default_rng(3).normal(0, 0.3, RATE).astype(np.float32)
    features = recognizer.pipeline.feature_extractor(wave, sampling_rate=RATE, return_tensors="pt").input_features
    ids = prompt = tokenizer.convert_tokens_to_ids(asked)
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    with torch.no_grad():
        while ids[-1] != end and len(ids) < model.generation_config.max_length:
            logits = model(input_features=features, decoder_input_ids=torch.tensor([ids])).logits
            ids = [*ids, int(logits[0, -1].argmax())]
    expected = tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()
    heard = recognizer.text(wave, RATE)
    recognizer.text(tones("high"), RATE)
    assert heard == recognizer.text(wave, RATE) == expected
    assert heard


def test_another_model_is_refused(damaged):
    (damaged / "config.json").write_text(json.dumps({"model_type": "qwen2"}))
    with pytest.raises(UserError, match=r"(?s)is not a Whisper recognizer.*model_type qwen2.*model_type whisper"):
        Recognizer.load(damaged)


def test_a_directory_without_a_model_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*config\.json"):
        Recognizer.load(tmp_path)


def test_missing_weights_are_refused(damaged):
    (damaged / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot load WhisperForConditionalGeneration"):
        Recognizer.load(damaged)


def test_weights_of_another_model_are_refused(damaged):
    from safetensors.torch import load_file, save_file

    weights = load_file(damaged / "model.safetensors")
    del weights["model.encoder.conv1.weight"]
    save_file(weights, damaged / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"(?s)not those of a Whisper recognizer.*model\.encoder\.conv1\.weight"):
        Recognizer.load(damaged)


def test_no_object_is_built_from_weights(damaged, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was-here"),)

    (damaged / "model.safetensors").unlink()
    (damaged / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Evil()}, protocol=2))
    with pytest.raises(UserError, match="cannot load WhisperForConditionalGeneration"):
        Recognizer.load(damaged)
    assert not (tmp_path / "was-here").exists()


def test_missing_tokenizer_is_refused(damaged):
    (damaged / "preprocessor_config.json").unlink(missing_ok=True)
    (damaged / "processor_config.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="cannot load WhisperFeatureExtractor"):
        Recognizer.load(damaged)


@pytest.mark.parametrize("settings", [{}, {"is_multilingual": True, "lang_to_id": {"<|fr|>": 3}}])
def test_settings_of_an_old_kind_are_refused(damaged, settings):
    (damaged / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="does not say how to select English"):
        Recognizer.load(damaged)


@pytest.mark.parametrize("table", [["colour"], {"colour": 1}])
def test_a_strange_table_of_spellings_is_refused(damaged, table):
    (damaged / "normalizer.json").write_text(json.dumps(table))
    with pytest.raises(UserError, match="is not a table of spellings"):
        Recognizer.load(damaged)
