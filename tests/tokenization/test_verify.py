"""Verification as a whole: a tokenized corpus decoded and compared, the report, and what ends it with an error."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from slmkit.audio.io import read_audio, write_wav
from slmkit.audio.mel import log_mel_distance
from slmkit.cli.main import main
from slmkit.codec.base import Codec, decode_alone
from slmkit.codec.open import open_codec
from slmkit.data.index import Corpus, index_path, write_manifest
from slmkit.data.shards import Sample, ShardReader, ShardWriter
from slmkit.errors import UserError
from slmkit.tokenization import verify
from slmkit.tokenization.copies import make_copies
from slmkit.tokenization.verify import Verification, verify_corpus

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = ROOT / "tokenize_jobs" / "sample_corpus"  # 32 sentences
SHARDS = 4


@pytest.fixture(scope="module")
def codec_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("codec") / "melvq"
    assert main(["codec", "fit", str(SENTENCES), str(directory)]) == 0
    return directory


@pytest.fixture(scope="module")
def codec(codec_directory: Path) -> Codec:
    return open_codec(codec_directory)


@pytest.fixture(scope="module")
def sound(codec_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("corpus") / "out"
    recipe = ["--config", str(ROOT / "tokenize_jobs/libritts.yaml"), "--num-workers", "0", "--set", "shard_samples=10"]
    assert main(["tokenize", "run", *recipe, str(SENTENCES), str(codec_directory), str(out)]) == 0
    return out


@pytest.fixture
def corpus(sound: Path, tmp_path: Path) -> Path:
    """A corpus to be damaged."""
    return Path(shutil.copytree(sound, tmp_path / "corpus"))


@pytest.fixture(scope="module")
def verified(sound: Path, codec: Codec, tmp_path_factory: pytest.TempPathFactory) -> tuple[Verification, Path]:
    """What was found in the sound corpus, and the report."""
    report = tmp_path_factory.mktemp("verified") / "new" / "report"
    return verify_corpus(sound, codec, samples=3, report=report), report


def test_a_sound_corpus_is_decoded_and_compared(sound: Path, verified: tuple[Verification, Path]) -> None:
    """The distances lie where test_mel.py finds copies and strangers."""
    found, report = verified
    assert (found.corpus, found.shards, found.samples, found.problems) == ("libritts", SHARDS, 32, ())
    assert found.seconds == Corpus.open(sound).seconds
    stored = json.loads((report / "verify.json").read_text())
    distances = stored["log_mel_distance_db"]
    assert distances == found.distances_db()
    assert 3 < distances["mean"] <= distances["worst"] < 9
    assert 11 < distances["mean_to_others"] < 25
    assert [copy["key"] for copy in stored["copies"]] == [copy.key for copy in found.copies]
    kinds = ("source.wav", "decoded.wav", "mel.png")
    files = {f"{number:04d}-{kind}" for number in range(3) for kind in kinds}
    assert {path.name for path in report.iterdir()} == files | {"index.html", "verify.json"}
    assert [path.name for path in report.parent.iterdir()] == ["report"]
    assert re.fullmatch(r"  codec: melvq [0-9a-f]{12}", found.lines()[0])
    assert f"  mean distance: {distances['mean']:.1f} dB" in found.lines()


def test_the_files_of_a_copy_are_its_source_and_its_decoded_codes(
    sound: Path, codec: Codec, verified: tuple[Verification, Path]
) -> None:
    found, report = verified
    reader = ShardReader(Corpus.open(sound))
    keys = [reader.corpus.key(number) for number in range(len(reader.corpus))]
    samples = {copy.key: reader.read(keys.index(copy.key)) for copy in found.copies}
    waves = {key: decode_alone(codec, sample.codes, sample.speaker) for key, sample in samples.items()}
    for copy, other in zip(found.copies, [found.copies[-1], *found.copies], strict=False):
        assert copy.source == reader.read(keys.index(copy.key)).meta["source"]
        source = read_audio(SENTENCES / copy.source, codec.spec.sample_rate)
        for kind, wave in (("source", source), ("decoded", waves[copy.key])):
            written = read_audio(report / f"{copy.name}-{kind}.wav", codec.spec.sample_rate)
            np.testing.assert_allclose(written, wave.clip(-1, 1), atol=1 / 32768)
        assert copy.distance_db == pytest.approx(log_mel_distance(source, waves[copy.key], 16000), abs=1e-6)
        shared = min(len(source), len(waves[other.key]))
        distance_db = log_mel_distance(source[:shared], waves[other.key][:shared], 16000)
        assert copy.other_db == pytest.approx(distance_db, abs=1e-6)


def test_a_cut_is_compared_with_the_same_cut(codec: Codec, codec_directory: Path, tmp_path: Path) -> None:
    """The source of a part of a long recording is that part, with as much of the pauses around it as was encoded."""
    away = np.abs(np.arange(2 * 16000) / 16000 - 1)  # from the quietest place of a pause, in seconds
    quiet = (0.01 * away * np.random.default_rng(0).uniform(-1, 1, len(away))).astype(np.float32)
    parts: list[np.ndarray] = []
    segments = []
    for path in sorted(SENTENCES.rglob("*.flac"))[:3]:
        start_sec = sum(map(len, parts)) / 16000 + 2
        parts += [quiet, wave := read_audio(path, 16000)]
        segments.append({"start": start_sec, "end": start_sec + len(wave) / 16000, "text": path.stem})
    write_wav(tmp_path / "long.wav", np.concatenate([*parts, quiet]), 16000)
    (tmp_path / "m.jsonl").write_text(json.dumps({"path": "long.wav", "segments": segments}))
    max_sec = max(segment["end"] - segment["start"] for segment in segments) + 0.2
    recipe = ["--config", str(ROOT / "tokenize_jobs/manifest.yaml"), "--num-workers", "0"]
    out = tmp_path / "out"
    paths = [str(tmp_path / "m.jsonl"), str(codec_directory), str(out)]
    assert main(["tokenize", "run", *recipe, *paths, "--set", f"max_sec={max_sec}"]) == 0
    found = verify_corpus(out, codec, report=tmp_path / "report")
    assert len(found.copies) == 3
    for copy in found.copies:
        source_sec = len(read_audio(tmp_path / "report" / f"{copy.name}-source.wav", 16000)) / 16000
        assert abs(source_sec - copy.seconds) < codec.spec.hop_samples / 16000
        assert copy.distance_db is not None
        assert copy.distance_db < 9
        assert set(copy.checks) >= {"chars_per_sec", "clipped", "dc", "silence"}


def test_the_seed_chooses_the_samples(sound: Path, codec: Codec, tmp_path: Path) -> None:
    def keys(seed: int, name: str) -> list[str]:
        return [copy.key for copy in verify_corpus(sound, codec, samples=1, seed=seed, report=tmp_path / name).copies]

    assert keys(0, "a") == keys(0, "b") != keys(1, "c")


def test_damage_is_named_at_once_and_the_report_is_written_all_the_same(
    corpus: Path, codec: Codec, tmp_path: Path
) -> None:
    """Shard 0 lacks its tar, shard 1 has a changed byte, shard 3 no index; what was drawn from shard 2 is decoded."""
    (corpus / "libritts-000000.tar").unlink()
    content = bytearray((corpus / "libritts-000001.tar").read_bytes())
    content[len(content) // 2] ^= 255
    (corpus / "libritts-000001.tar").write_bytes(content)
    (corpus / "libritts-000003.index.json").unlink()
    with pytest.raises(UserError) as error:
        verify_corpus(corpus, codec, samples=8, report=tmp_path / "report")
    message = str(error.value)
    assert "3 files are damaged or not as planned" in message
    assert "- libritts-000000.tar: the tar is missing" in message
    assert "- libritts-000001.tar: the tar has changed: sha256" in message
    assert re.search(r"- libritts-000003\.tar: .* lacks libritts-000003\.index\.json", message)
    assert str(tmp_path / "report/index.html") in message
    stored = json.loads((tmp_path / "report/verify.json").read_text())
    assert {problem["where"] for problem in stored["problems"]} == {f"libritts-00000{i}.tar" for i in (0, 1, 3)}
    assert 0 < len(stored["copies"]) < 8
    assert not {"libritts-000000.tar", "libritts-000003.tar"} & {copy["shard"] for copy in stored["copies"]}


def test_a_damaged_shard_is_made_again(corpus: Path, codec_directory: Path, tmp_path: Path) -> None:
    """As the message says: without its tar and index, `run` makes the same again, and the corpus is sound."""
    tar = corpus / "libritts-000001.tar"
    expected = tar.read_bytes()
    tar.write_bytes(expected[:-1] + b"x")
    with pytest.raises(
        UserError, match=r"remove the tar and the index of each shard that is named and give `slmkit tok"
    ):
        verify_corpus(corpus, None, report=tmp_path / "before")
    tar.unlink()
    index_path(corpus, tar.name).unlink()
    recipe = ["--config", str(ROOT / "tokenize_jobs/libritts.yaml"), "--num-workers", "0", "--set", "shard_samples=10"]
    assert main(["tokenize", "run", *recipe, str(SENTENCES), str(codec_directory), str(corpus)]) == 0
    assert tar.read_bytes() == expected
    assert verify_corpus(corpus, None, report=tmp_path / "after").problems == ()


def test_a_plan_that_differs_is_named(corpus: Path, tmp_path: Path) -> None:
    path = corpus / "plan" / "plan.json"
    plan = json.loads(path.read_text())
    path.write_text(json.dumps({**plan, "shards": [*plan["shards"][:2], plan["shards"][2]]}))
    with pytest.raises(UserError) as error:
        verify_corpus(corpus, None, report=tmp_path / "report")
    assert "manifest.json: it lists 4 shards, 3 were planned" in str(error.value)
    assert "libritts-000003.tar: 2 utterances are not in the plan, such as " in str(error.value)


def test_many_problems_are_all_in_the_report(corpus: Path, tmp_path: Path) -> None:
    for number in range(4, 124):
        shutil.copy(corpus / "libritts-000003.index.json", corpus / f"libritts-{number:06d}.index.json")
    with pytest.raises(UserError, match=r"120 files are[\s\S]*libritts-000103\.index\.json[\s\S]*- and 20 more"):
        verify_corpus(corpus, None, report=tmp_path / "report")
    assert len(json.loads((tmp_path / "report/verify.json").read_text())["problems"]) == 120


def test_codes_under_the_wrong_key_are_noticed_by_ear(
    sound: Path, codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four samples, the first two have each other's codes and voices. All checksums fit: only decoding tells."""
    reader = ShardReader(Corpus.open(sound))
    samples = [reader.read(i) for i in range(4)]
    writer = ShardWriter(tmp_path / "c", "c", 0)
    for mine, spoken in zip(samples, (samples[1], samples[0], *samples[2:]), strict=True):
        writer.add(Sample(mine.key, spoken.codes, spoken.speaker, mine.meta))
    write_manifest(tmp_path / "c", "c", codec.spec, [writer.commit().summary], {})
    monkeypatch.setattr(verify, "planned_audio", lambda *_: lambda _, key: source(key))
    with pytest.raises(UserError) as error:
        verify_corpus(tmp_path / "c", codec, samples=4, report=tmp_path / "report")
    lines = [line for line in str(error.value).splitlines() if line.startswith("  - ")]
    for line, sample in zip(lines, samples[:2], strict=True):
        what = f"  - c-000000.tar: sample '{sample.key}' decodes to speech that is no more like its source"
        assert line.startswith(what)
    assert (tmp_path / "report/index.html").read_text().count("no more like its own source") == 2


def source(key: str) -> np.ndarray:
    return read_audio(next(SENTENCES.rglob(f"{key}.flac")), 16000)


def test_without_the_source_there_is_nothing_to_compare(
    sound: Path, codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three sources are gone; the other has no stranger to be compared with."""
    keys: list[str] = []

    def open_source(shard: int, key: str) -> np.ndarray | None:
        keys.append(key)
        return source(key) if len(keys) == 2 else None

    monkeypatch.setattr(verify, "planned_audio", lambda *_: open_source)
    found = verify_corpus(sound, codec, samples=3, report=tmp_path / "report")
    assert [copy.key for copy in found.copies] == keys
    assert [copy.distance_db is None for copy in found.copies] == [True, False, True]
    assert [copy.other_db for copy in found.copies] == [None, None, None]
    distance_db = found.copies[1].distance_db
    assert found.distances_db() == {"mean": distance_db, "worst": distance_db, "mean_to_others": None}
    page = (tmp_path / "report/index.html").read_text()
    assert page.count("nothing to compare with") == 2
    assert not (tmp_path / "report/0000-source.wav").exists()


def test_a_source_that_became_tiny_or_silent_is_no_crash(sound: Path, codec: Codec, tmp_path: Path) -> None:
    reader = ShardReader(Corpus.open(sound))
    waves = iter([np.full(20, 0.5, np.float32), np.zeros(16000, np.float32)])
    copies = make_copies(reader, codec, [0, 1], lambda shard, key: next(waves), tmp_path)
    assert [copy.distance_db is None for copy in copies] == [False, False]
    assert [copy.other_db is None for copy in copies] == [True, False]


def test_another_codec_is_refused(sound: Path, tmp_path: Path) -> None:
    some = tmp_path / "some"
    for speaker in ("11", "12"):
        shutil.copytree(SENTENCES / speaker, some / speaker)
    assert main(["codec", "fit", str(some), str(tmp_path / "other")]) == 0
    with pytest.raises(UserError, match=r"the codec of this command is not .*: weights_sha256 differs"):
        verify_corpus(sound, open_codec(tmp_path / "other"), report=tmp_path / "report")
    assert not (tmp_path / "report").exists()


def test_codes_without_speaker_vectors_cannot_be_decoded(codec: Codec, tmp_path: Path) -> None:
    """As of an import; they can be read through."""
    writer = ShardWriter(tmp_path / "c", "c", 0)
    num_streams = len(codec.spec.streams)
    writer.add(Sample("a", np.zeros((num_streams, 4), np.uint16), None, {"text": "x", "seconds": 0.05}))
    fields = codec.spec.to_dict() | {"speaker_dim": 0, "weights_sha256": ""}
    write_manifest(tmp_path / "c", "c", type(codec.spec).from_dict(fields), [writer.commit().summary], {})
    with pytest.raises(UserError, match=r"its speaker vectors are not the codec's[\s\S]*width 0"):
        verify_corpus(tmp_path / "c", codec, report=tmp_path / "report")
    assert verify_corpus(tmp_path / "c", None, report=tmp_path / "report").copies == ()


def test_a_report_is_never_overwritten(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    with pytest.raises(UserError, match="the report exists already"):
        verify_corpus(sound, None, report=tmp_path / "report")


def test_a_report_that_cannot_be_written_is_named_before_anything_is_read(sound: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/report: Not a directory"):
        verify_corpus(sound, None, report=tmp_path / "file" / "report")


def test_a_report_begun_meanwhile_is_kept(
    sound: Path, codec: Codec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "report"

    def open_source(shard: int, key: str) -> None:
        report.mkdir(exist_ok=True)
        (report / "index.html").write_text("another's")

    monkeypatch.setattr(verify, "planned_audio", lambda *_: open_source)
    with pytest.raises(UserError, match=r"cannot write .*report: Directory not empty"):
        verify_corpus(sound, codec, samples=1, report=report)
    assert [path.name for path in tmp_path.iterdir()] == ["report"]
    assert (report / "index.html").read_text() == "another's"
