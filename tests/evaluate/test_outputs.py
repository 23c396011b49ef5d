"""What is chosen of a corpus, and the directory of outputs: what cannot be mixed, read or written is named."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from evaluated import make_chain

from slmkit.codec.melvq import MelVQ
from slmkit.data.index import Corpus
from slmkit.data.shards import ShardReader
from slmkit.errors import UserError
from slmkit.evaluate.generation import copy_synthesis, generate, seed_of
from slmkit.evaluate.outputs import codes_path, finished, read_codes, wav_path
from slmkit.evaluate.results import read_report
from slmkit.evaluate.scoring import score_outputs
from slmkit.evaluate.selection import NamedVoice, read_list, select
from slmkit.evaluate.spoken import Tools, Truths
from slmkit.infer.request import SpeakingSettings
from slmkit.infer.synthesizer import Synthesizer

MODEL = "made in the test"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chain(tmp_path_factory.mktemp("chain"), max_steps=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": 0.5}, "sampling differs"),
        ({"seed": 1}, "seed differs"),
        ({"max_sec": 1.0}, "max_sec differs"),
    ],
)
def test_two_settings_are_not_mixed(
    change: dict[str, Any], message: str, corpus: Corpus, codec: MelVQ, tmp_path: Path
) -> None:
    copy_synthesis(codec, corpus, select(corpus, limit=1), SpeakingSettings(), tmp_path)
    with pytest.raises(UserError, match=message):
        copy_synthesis(codec, corpus, select(corpus, limit=1), SpeakingSettings(**change), tmp_path)
    with pytest.raises(UserError, match="task differs"):
        copy_synthesis(codec, corpus, select(corpus, limit=1), SpeakingSettings(), tmp_path, task="qa")


def test_neither_models_nor_voices_are_mixed(corpus: Corpus, synthesizer: Synthesizer, tmp_path: Path) -> None:
    def speak(model: str, limit: int, value: float) -> None:
        voice = NamedVoice("v.npy", np.full(80, value, np.float32))
        items = select(corpus, [voice], limit=limit)
        generate(synthesizer, corpus, items, SpeakingSettings(max_sec=0.1), tmp_path / "o", model=model, voices=[voice])

    speak(MODEL, 1, 0.0)
    for changed, message in (
        (("another model", 1, 0.0), "model differs"),
        ((MODEL, 1, 0.5), "voices differs"),
    ):
        with pytest.raises(UserError, match=message):
            speak(*changed)
    speak(MODEL, 1, 0.0)  # all is there


def test_codes_without_sound_are_refused_and_the_others_go_on(corpus: Corpus, codec: MelVQ, tmp_path: Path) -> None:
    class Overflowing(MelVQ):
        def decode(self, codes: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
            wave = super().decode(codes, speaker)
            return wave * torch.inf if torch.equal(speaker[0], torch.from_numpy(first)) else wave

    first = ShardReader(corpus).read(0).speaker
    overflowing = Overflowing(codec._weights["codebooks"], codec._weights["average"])
    copy_synthesis(overflowing, corpus, select(corpus, limit=3), SpeakingSettings(), tmp_path / "out")
    records = finished(tmp_path / "out").records
    assert [record.reason for record in records] == ["refused", "end", "end"]
    assert (records[0].frames, records[0].why[:35]) == (0, "the codec could not turn the codes ")
    assert not wav_path(tmp_path / "out", 0).exists()


def test_choices(corpus: Corpus, tmp_path: Path) -> None:
    keys = [corpus.key(i) for i in range(4)]
    assert [item.key for item in select(corpus, every=2)] == keys[::2]
    assert [item.key for item in select(corpus, every=2, limit=1)] == keys[:1]
    assert [item.key for item in select(corpus, keys=[keys[3], keys[1]])] == [keys[3], keys[1]]
    assert [item.voice_key for item in select(corpus, ["swapped"])] == [keys[2], keys[2], keys[0], keys[0]]
    assert seed_of(0, "a", "own") != seed_of(1, "a", "own")
    (tmp_path / "keys").write_text(f"\ufeff{keys[2]}\r\n\n {keys[0]} \n")
    assert read_list(tmp_path / "keys", "keys") == [keys[2], keys[0]]
    (tmp_path / "empty").touch()
    refused: list[tuple[str, Callable[[], object]]] = [
        ("has no utterance 'x'", lambda: select(corpus, keys=["x", keys[0]])),
        ("no utterance of .* is chosen", lambda: select(corpus, keys=[])),
        ("a voice is given twice", lambda: select(corpus, ["own", "own"])),
        ("voices cannot be swapped: one speaker", lambda: select(corpus, ["swapped"], limit=2)),
        ("cannot read the list of keys", lambda: read_list(tmp_path / "nothing", "keys")),
        ("the list of keys is empty", lambda: read_list(tmp_path / "empty", "keys")),
    ]
    for message, call in refused:
        with pytest.raises(UserError, match=message):
            call()


def test_outputs_that_cannot_be_scored_are_named(corpus: Corpus, codec: MelVQ, tmp_path: Path) -> None:
    out, truths = tmp_path / "out", Truths(corpus, codec)
    copy_synthesis(codec, corpus, select(corpus, limit=2), SpeakingSettings(), out)

    def report() -> object:
        return score_outputs(out, truths, Tools())

    def damaged(path: str, change: Callable[[bytes], bytes], message: str) -> None:
        content = (out / path).read_bytes()
        (out / path).write_bytes(change(content))
        with pytest.raises(UserError, match=message):
            report()
        (out / path).write_bytes(content)

    damaged("outputs.jsonl", lambda text: text.splitlines(keepends=True)[0], "are not finished")
    damaged("outputs.jsonl", lambda text: b"[1]\n" + text, "outputs.jsonl is damaged")
    damaged("outputs.jsonl", lambda text: text.replace(b'"key": "11', b'"key": "19'), "for another corpus")
    damaged("job.json", lambda text: text.replace(b'"voices"', b'"noises"'), "does not say how outputs were made")
    damaged("job.json", lambda text: b"{}", r"job\.json is damaged")
    damaged("job.json", lambda text: text.replace(corpus.fingerprint.encode(), b"0"), "for another corpus")
    weights = codec.spec.weights_sha256.encode()
    damaged("job.json", lambda text: text.replace(weights, b"0"), "with another codec")
    damaged("codes/00000.npy", lambda content: content[:100], r"cannot read .*00000\.npy")
    damaged("wav/00001.wav", lambda content: content[:20], r"cannot read .*00001\.wav")
    damaged("wav/00001.wav", lambda content: content[:-1], r"cannot read .*00001\.wav")
    for record in (b'"place": 0.5', b'"place": "0"'):
        damaged("outputs.jsonl", lambda text, new=record: text.replace(b'"place": 0', new), "outputs.jsonl is damaged")
    damaged("outputs.jsonl", lambda text: text.replace(b'"frames": ', b'"frames": -'), "outputs.jsonl is damaged")
    damaged("outputs.jsonl", lambda text: text.replace(b'"number": 0', b'"number": 9'), "for another corpus")
    damaged("outputs.jsonl", lambda text: text.replace(b'"voice_number": 0', b'"voice_number": 9'), "is not known: own")
    damaged("outputs.jsonl", lambda text: text.replace(b'"voice_number": 0', b'"voice_number": null'), "not known: own")
    damaged(
        "job.json", lambda text: text.replace(b'"voices": {}', b'"voices": 3'), "does not say how outputs were made"
    )
    for array in (np.zeros((3, 2), np.int16), np.zeros(4, np.float32)):
        file = io.BytesIO()
        np.save(file, array)
        damaged("codes/00000.npy", lambda content, new=file: new.getvalue(), "does not hold the codes")
    report()
    damaged("report.json", lambda text: b"{}", "is not the report of an evaluation")
    for old, new in (
        (b'"success": [', b'"success": 3, "other": ['),
        (b'"digits": 1', b'"digits": 1000000'),
        (b'"key": "', b'"key": 3, "k": "'),
    ):
        damaged("report.json", lambda text, a=old, b=new: text.replace(a, b), "is not the report of an evaluation")
    damaged("report.json", lambda text: text.replace(b'"success": [', b'"success": [1, '), "scores.success")
    (out / "outputs.jsonl").unlink()
    with pytest.raises(UserError, match="are not finished"):
        report()
    with pytest.raises(UserError, match="holds no generated outputs"):
        score_outputs(tmp_path / "nothing", truths, Tools())
    with pytest.raises(UserError, match="holds no scores"):
        read_report(tmp_path)


def test_codes_that_an_older_version_stored_are_read(codec: MelVQ, corpus: Corpus, tmp_path: Path) -> None:
    copy_synthesis(codec, corpus, select(corpus, limit=1), SpeakingSettings(), tmp_path)
    (record,) = finished(tmp_path).records
    path = codes_path(tmp_path, 0)
    codes = np.load(path)
    assert codes.dtype == np.uint16
    np.save(path, codes.astype(np.int16))
    found = read_codes(tmp_path, record, len(codec.spec.streams))
    assert found.dtype == np.uint16
    assert np.array_equal(found, codes)
    np.save(path, -1 - codes.astype(np.int16))
    with pytest.raises(UserError, match=r"00000\.npy does not hold the codes of the utterance\n.*codes are -"):
        read_codes(tmp_path, record, len(codec.spec.streams))
