"""Finding the codec in a directory, and saying what is wrong when there is none."""

import numpy as np
import pytest
import torch

from slmkit.codec import open as module
from slmkit.codec.facodec.codec import FACodec
from slmkit.codec.melvq import MelVQ
from slmkit.codec.open import codec_families, open_codec, usable_device
from slmkit.errors import UserError

FACODEC_FILES, MELVQ_FILES = (codec_families()[name].files for name in ("facodec", "melvq"))


@pytest.fixture
def fitted(tmp_path):
    wave = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
    MelVQ.fit([wave], 0, num_entries=16).save(tmp_path / "codec")
    return tmp_path / "codec"


@pytest.mark.parametrize("kind", [str, lambda path: path])
def test_opens_a_fitted_codec(fitted, kind):
    codec = open_codec(kind(fitted), "cpu")
    assert isinstance(codec, MelVQ)
    assert codec.spec.streams[0].size == 16
    assert codec.device == torch.device("cpu")


def test_hands_facodec_files_to_facodec(tmp_path, monkeypatch):
    for name in FACODEC_FILES:
        (tmp_path / name).touch()
    calls = []
    family = codec_families()["facodec"]
    assert family.load == FACodec.from_directory
    monkeypatch.setitem(module._families, "facodec", family._replace(load=lambda *args: calls.append(args)))
    open_codec(tmp_path)
    assert calls == [(tmp_path, torch.device("cpu"))]


def test_damaged_facodec_file_is_a_user_error(tmp_path):
    for name in FACODEC_FILES:
        (tmp_path / name).write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match=FACODEC_FILES[0]):
        open_codec(tmp_path)


def test_damaged_fitted_codec_is_a_user_error(fitted):
    (fitted / MELVQ_FILES[0]).write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match=r"is not the file its codec_spec\.json names"):
        open_codec(fitted)


@pytest.mark.parametrize("name", [*FACODEC_FILES, *MELVQ_FILES, "model.safetensors"])
def test_part_of_a_codec_is_named(tmp_path, name):
    (tmp_path / name).touch()
    with pytest.raises(UserError, match=rf"is not a codec directory\n.*got: +{name}\n.*codec.json, or .*melvq"):
        open_codec(tmp_path)


def test_empty_missing_or_file_instead_of_directory(tmp_path):
    with pytest.raises(UserError, match=r"is not a codec directory\n.*no files"):
        open_codec(tmp_path)
    (tmp_path / "a.bin").touch()
    for path in (tmp_path / "nowhere", tmp_path / "a.bin"):
        with pytest.raises(UserError, match=r"is not a codec directory\n.*no such directory"):
            open_codec(path)


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_device_that_is_not_there(fitted, device):
    with pytest.raises(UserError, match=f"cannot use device {device}"):
        open_codec(fitted, device)


def test_without_a_gpu_cuda_is_refused_in_these_words(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="cannot use device cuda: there is no GPU that torch can use"):
        usable_device("cuda")
    assert usable_device("cpu").type == "cpu"
