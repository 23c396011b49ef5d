"""A codec beside a voice encoder: vectors of its own samples alone, the inner codec's codes and sound, directories."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from plain_codec import HOP, RATE, PlainCodec, write_plain
from seeded_voice import seeded_voice, write_published_voice
from tiny_codec import TinyCodec
from tiny_wavlm import WIDTH, write_wavlm

from slmkit.cli.main import main
from slmkit.codec import added
from slmkit.codec.added import Added
from slmkit.codec.base import Codec
from slmkit.codec.melvq import MelVQ
from slmkit.codec.open import codec_families, codec_files, open_codec
from slmkit.codec.stages import StagedCodec
from slmkit.codec.stream import StreamDecoder
from slmkit.codec.voiced import VoicedCodec, with_voice
from slmkit.errors import UserError
from slmkit.files import read_json, write_json
from slmkit.voice.open import open_voice

VOICE = seeded_voice()


def plain() -> PlainCodec:
    return PlainCodec(Added(streams=3, config={}, weights={"gain": torch.tensor(60.0)}), torch.device("cpu"))


def waves_of(*seconds: float) -> list[torch.Tensor]:
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.normal(0, 0.1, round(RATE * one)).astype(np.float32)) for one in seconds]


def test_law_a_vector_does_not_depend_on_batch_place_or_padding() -> None:
    codec, waves = with_voice(plain(), VOICE), waves_of(0.5, 2.7, 0.1, 1.3)
    lengths = torch.tensor([len(wave) for wave in waves])
    padded = torch.nn.utils.rnn.pad_sequence(waves, batch_first=True, padding_value=0.7)
    together = codec.encode(padded, lengths)
    assert (together.speaker.dtype, together.speaker.shape) == (torch.float32, (4, 256))
    backwards = codec.encode(padded.flip(0), lengths.flip(0))
    assert torch.equal(backwards.speaker.flip(0), together.speaker)
    for i, wave in enumerate(waves):
        alone = codec.encode(wave[None], lengths[i : i + 1])
        assert torch.equal(alone.speaker[0], together.speaker[i])
        assert np.array_equal(alone.speaker[0].numpy(), VOICE.vector(wave.numpy(), RATE))
        assert torch.equal(alone.codes[0], together.codes[i, :, : alone.num_frames[0]])


def test_codes_and_sound_are_the_inner_codecs() -> None:
    inner, codec, (wave,) = plain(), with_voice(plain(), VOICE), waves_of(1.0)
    encoded = codec.encode(wave[None], torch.tensor([len(wave)]))
    assert torch.equal(encoded.codes, inner.encode(wave[None], torch.tensor([len(wave)])).codes)
    silence = torch.zeros(1, 0)
    for vector in (encoded.speaker, torch.full((1, 256), torch.nan)):
        assert torch.equal(codec.decode(encoded.codes, vector), inner.decode(encoded.codes, silence))
    assert codec.reach_frames == inner.reach_frames
    assert codec.spec.weights_sha256 == inner.spec.weights_sha256
    assert (codec.spec.speaker_dim, codec.spec.speaker_sha256) == (256, VOICE.sha256)
    assert not codec.spec.decodes_voice


def test_it_streams_as_the_inner_codec_does() -> None:
    codec, (wave,) = with_voice(plain(), VOICE), waves_of(3.0)
    assert isinstance(codec, StagedCodec)
    codes = codec.encode(wave[None], torch.tensor([len(wave)])).codes
    stream = StreamDecoder(codec, torch.zeros(256))
    parts = [stream.push(codes[0, :, start : start + 7]) for start in range(0, codes.shape[2], 7)]
    assert torch.equal(torch.cat([*parts, stream.finish()]), codec.decode(codes, torch.zeros(1, 256))[0])
    assert not isinstance(VoicedCodec(TinyCodec(), VOICE), StagedCodec)  # a codec without stages has none


def test_too_short_for_a_vector_is_too_short_for_the_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame of this codec is longer than the encoder needs, unless that needs more."""
    codec = with_voice(plain(), VOICE)
    assert [codec.num_frames(number) for number in (0, 199, HOP - 1, HOP, 2 * HOP)] == [0, 0, 0, 1, 2]
    monkeypatch.setattr(VOICE, "min_samples", 1000)
    assert [codec.num_frames(number) for number in (499, 500)] == [0, 1]
    with pytest.raises(ValueError, match="an utterance of 499 samples is too short"):
        codec.encode(torch.zeros(2, 800), torch.tensor([800, 499]))


def test_a_codec_with_vectors_of_its_own_takes_no_others(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)the codec tiny has speaker vectors of its own.*width 2.*--speaker"):
        with_voice(TinyCodec(), VOICE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`published`, a codec; `voice`, an encoder; `plain`, the codec added; `voiced`, added with the encoder."""
    place = tmp_path_factory.mktemp("voiced")
    write_plain(place / "published")
    write_published_voice(place / "voice")
    for words in (["plain"], ["voiced", "--speaker", str(place / "voice")]):
        assert main(["codec", "add", str(place / "published"), str(place / words[0]), *words[1:]]) == 0
    return place


def equal(a: Codec, b: Codec) -> bool:
    (wave,) = waves_of(1.0)
    first, second = (codec.encode(wave[None], torch.tensor([len(wave)])) for codec in (a, b))
    same = all(torch.equal(x, y) for x, y in zip(first, second, strict=True))
    return same and a.spec == b.spec


def test_a_directory_with_a_voice_opens_with_it(place: Path) -> None:
    described = read_json(place / "voiced" / "codec.json")
    assert sorted(described["voice"]) == ["config.json", "model.safetensors"]
    assert equal(open_codec(place / "voiced"), with_voice(open_codec(place / "plain"), VOICE))
    assert open_codec(place / "plain").spec.speaker_dim == 0


def test_a_voice_is_put_beside_an_added_codec(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["codec", "add", str(place / "plain"), str(tmp_path / "out"), "--speaker", str(place / "voice")]
    assert main(words) == 0
    assert "speaker vectors of width 256" in capsys.readouterr().out
    assert equal(open_codec(tmp_path / "out"), open_codec(place / "voiced"))
    assert main(["codec", "add", str(place / "voiced"), *words[3:]]) == 2
    assert "already exists" in capsys.readouterr().err
    words[2:4] = [str(place / "voiced"), str(tmp_path / "again")]  # another voice in place of the one that is there
    assert main(words) == 0
    assert main([*words[:3], str(tmp_path / "third"), *words[4:], "--streams", "2"]) == 2
    assert "was added with another number of streams" in capsys.readouterr().err


def test_a_wavlm_beside_a_codec(place: Path, tmp_path: Path) -> None:
    wavlm = write_wavlm(tmp_path / "wavlm")
    words = ["codec", "add", str(place / "published"), str(tmp_path / "out"), "--speaker", str(wavlm)]
    assert main(words) == 0
    files = ["config.json", "model.safetensors", "preprocessor_config.json"]
    assert sorted(read_json(tmp_path / "out" / "codec.json")["voice"]) == files
    voice = open_voice(wavlm)
    assert equal(open_codec(tmp_path / "out"), with_voice(open_codec(place / "plain"), voice))
    assert open_codec(tmp_path / "out").spec.speaker_dim == WIDTH


def test_a_codec_as_it_is_is_not_added(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32)
    MelVQ.fit([wave], 0, num_entries=16).save(tmp_path / "melvq")
    (tmp_path / "facodec").mkdir()
    for name in codec_families()["facodec"].files:
        (tmp_path / "facodec" / name).touch()
    sources = {tmp_path / "melvq": "melvq", tmp_path / "facodec": "facodec", place / "plain": "added before"}
    for source, kind in sources.items():
        for options in ([], ["--speaker", str(place / "voice")])[: 1 + (source.name == "melvq")]:
            assert main(["codec", "add", str(source), str(tmp_path / "out"), *options]) == 2
            assert f"is a codec as it is: {kind}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_torch_file_may_have_any_name(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "published", tmp_path / "published")
    (tmp_path / "published" / "model.safetensors").unlink()
    torch.save({"gain": torch.tensor(60.0)}, tmp_path / "published" / "model.pth.tar")
    assert main(["codec", "add", str(tmp_path / "published" / "model.pth.tar"), str(tmp_path / "out")]) == 0
    assert equal(open_codec(tmp_path / "out"), open_codec(place / "plain"))


def test_only_the_files_of_a_codec_are_its_own(place: Path, tmp_path: Path) -> None:
    shutil.copytree(place / "voiced", tmp_path / "codec")
    for name in ("old.ckpt", ".git/config", "voice/old.pt"):
        (tmp_path / "codec" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "codec" / name).write_text("x")
    names = [file.relative_to(tmp_path / "codec").as_posix() for file in codec_files(tmp_path / "codec")]
    assert names == ["codec.json", "model.safetensors", "voice/config.json", "voice/model.safetensors"]


def test_a_file_that_may_not_be_read_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(added, "sha256_file", refused)
    with pytest.raises(UserError, match=r"cannot read .*model\.safetensors: Permission denied"):
        open_codec(place / "plain")


def test_a_voice_that_is_none_leaves_nothing(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["codec", "add", str(place / "published"), str(tmp_path / "out"), "--speaker", str(tmp_path)]
    assert main(words) == 2
    assert "holds no voice encoder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_voice_is_refused(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "codec"
    shutil.copytree(place / "voiced", out)
    weights = out / "voice" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(UserError, match=r"(?s)voice/model\.safetensors is not the file that codec\.json names.*sha256"):
        open_codec(out)
    weights.unlink()
    with pytest.raises(UserError, match=r"(?s)voice/model\.safetensors is not the file.*no such file"):
        open_codec(out)
    weights.write_bytes(whole)
    (out / "voice" / "more.json").write_text("{}")
    with pytest.raises(UserError, match=r"voice/more\.json is not the file that codec\.json names"):
        open_codec(out)
    shutil.rmtree(out / "voice")
    with pytest.raises(UserError, match=r"voice/config\.json is not the file that codec\.json names"):
        open_codec(out)
    write_json(out / "codec.json", {**read_json(out / "codec.json"), "voice": 7}, replace=True)
    with pytest.raises(UserError, match="voice"):
        open_codec(out)
