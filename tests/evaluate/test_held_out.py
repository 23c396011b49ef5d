"""Held-out utterances are scored, what was trained on is marked, and an evaluation can be extended."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluated import codes_of, make_chain

from slmkit.cli.main import main
from slmkit.codec.melvq import MelVQ
from slmkit.data.index import Corpus
from slmkit.data.lengths import key_hash, speaker_hash
from slmkit.errors import UserError
from slmkit.evaluate.generation import copy_synthesis
from slmkit.evaluate.outputs import finished
from slmkit.evaluate.results import headline, read_report, training_lines
from slmkit.evaluate.scoring import score_outputs
from slmkit.evaluate.selection import select
from slmkit.evaluate.spoken import Tools, Truths
from slmkit.infer.request import SpeakingSettings
from slmkit.model.trained_on import TrainedOn, TrainedSource


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chain(tmp_path_factory.mktemp("chain"), max_steps=0)


def record(corpus: Corpus, *numbers: int, **change: Any) -> TrainedOn:
    """Of a model that was trained on these utterances, all by the speaker 11."""
    keys = np.array(sorted(key_hash(corpus.key(number)) for number in numbers), np.uint64)
    source = TrainedSource(path="data", sha256=corpus.fingerprint, task="tts", utterances=len(numbers), of=len(corpus))
    speakers = np.array([speaker_hash("11")], np.uint64)
    return TrainedOn(
        **{"sources": (source,), "held_out": "", "is_all": True, "keys": keys, "speakers": speakers} | change
    )


class Hearing:
    """A recognizer that hears nothing, and counts how often it was asked."""

    spellings: dict[str, str] = {}  # noqa: RUF012 - as the protocol has it

    def __init__(self) -> None:
        self.asked = 0

    def text(self, wave: np.ndarray, sample_rate: int) -> str:
        self.asked += 1
        return ""


def test_held_out_utterances_are_chosen(corpus: Corpus) -> None:
    def chosen(**choice: Any) -> list[int]:
        return [one.number for one in select(corpus, **choice)]

    known = record(corpus, 0, 2)
    assert chosen(trained_on=known) == [1, 3]
    assert chosen(trained_on=known, trained=True) == [0, 2]
    assert chosen(trained_on=known, limit=1) == [1]
    assert chosen(trained_on=known, keys=[corpus.key(2), corpus.key(1)]) == [2, 1]
    assert chosen(trained_on=None) == [0, 1, 2, 3]
    with pytest.raises(UserError, match=r"does not note what it was trained on"):
        chosen(trained_on=None, trained=True)
    with pytest.raises(UserError, match=r"(?s)trained on every utterance of .*--trained measures memoris"):
        chosen(trained_on=record(corpus, 0, 1, 2, 3))
    with pytest.raises(UserError, match=r"(?s)trained on no utterance of .*leave out --trained"):
        chosen(trained_on=record(corpus), trained=True)


def test_more_utterances_from_all_over_the_corpus_keep_those_of_fewer(corpus: Corpus) -> None:
    by_limit = [[one.number for one in select(corpus, limit=limit, spread=True)] for limit in (1, 2, 3, 4, 9)]
    assert [len(numbers) for numbers in by_limit] == [1, 2, 3, 4, 4]
    for fewer, more in itertools.pairwise(by_limit):
        assert set(fewer) <= set(more)
        assert more == sorted(more)


def test_the_command_marks_what_was_trained_on(
    chain: Path, corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Held-out ones alone at first; then one of the others is forced in."""
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(chain / "model", model)
    record(corpus, 0, 2).write(model)
    words = ["evaluate", str(model), "--corpus", str(chain / "corpus"), "--codec", str(chain / "codec")]
    words += ["--max-sec", "0.1", "--out"]
    assert main([*words, str(out)]) == 0
    assert "utterances that the model was trained on: none of 2" in capsys.readouterr().out
    report = read_report(out)
    assert [(row["number"], row["trained_on"], row["trained_voice"]) for row in report["utterances"]] == [
        (1, False, True),
        (3, False, False),
    ]
    assert [*report["summary"]] == ["all", "seen voices", "unseen voices"]
    assert report["trained_on"]["sources"][0]["path"] == "data"
    page = (out / "report.html").read_text()
    assert "data: 2 of 4 utterances, tts" in page
    assert "<summary>" not in page

    (tmp_path / "keys").write_text(f"{corpus.key(2)}\n")
    assert main([*words, str(out), "--keys", str(tmp_path / "keys")]) == 0
    report = read_report(out)
    assert [row["number"] for row in report["utterances"]] == [1, 3, 2]
    assert training_lines(report) == ["utterances that the model was trained on: 1 of 3"]
    assert {name: group["utterances"] for name, group in report["summary"].items()} == {
        "all": 3,
        "held out": 2,
        "trained on": 1,
        "seen voices": 1,
        "unseen voices": 2,
    }
    marked = (out / "report.html").read_text().partition("<summary>trained on: 1 of the keys</summary>")[2]
    assert f"<bdi>{corpus.key(2)}</bdi></p>" in marked

    by_heart = [*words, str(tmp_path / "by heart"), "--trained", "--limit", "1", "--only", "generate"]
    assert main(by_heart) == 0
    assert [one.trained_on for one in finished(tmp_path / "by heart").records] == [True]
    record(corpus, 0, 1, 2, 3).write(model)
    assert main([*words, str(tmp_path / "none")]) == 2
    assert "scores of them would flatter it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("noted", "expected"),
    [
        ({"is_known": False}, "not known: the model does not say"),
        ({"is_known": True, "is_same_corpus": False}, "told by their keys: it was trained on another corpus"),
        ({"is_known": True, "is_all": False}, "it started from weights that do not say"),
    ],
)
def test_what_is_not_certain_is_said(noted: dict[str, Any], expected: str) -> None:
    report = {"settings": {"model": "m"}, "utterances": [{"trained_on": True}], "trained_on": noted}
    assert any(line.startswith(expected) for line in training_lines(report))
    copies = {**report, "settings": {"model": "copy synthesis"}}
    assert training_lines(copies) == ["no model spoke: these are the codec's copies"]


def test_an_evaluation_is_extended_and_keeps_what_is_done(corpus: Corpus, codec: MelVQ, tmp_path: Path) -> None:
    """Records, waves and scores stay; what only the new utterances lack is measured of them alone."""
    truths, first, second = Truths(corpus, codec), Hearing(), Hearing()

    def extended(limit: int, voices: list[str]) -> None:
        copy_synthesis(codec, corpus, select(corpus, voices, limit=limit), SpeakingSettings(), tmp_path)

    def scored(tools: Tools) -> dict[str, Any]:
        return score_outputs(tmp_path, truths, tools, measured_with={"asr": "w"} if tools.recognizer else {})

    extended(2, ["own"])
    scored(Tools(recognizer=first))
    stored = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.npy")}
    before = finished(tmp_path).records
    extended(3, ["own", "swapped"])
    records = finished(tmp_path).records
    assert records[:2] == before
    assert [(one.place, one.number, one.voice) for one in records] == [
        (0, 0, "own"),
        (1, 1, "own"),
        (2, 2, "own"),
        (3, 0, "swapped"),
        (4, 1, "swapped"),
        (5, 2, "swapped"),
    ]
    assert {path: path.stat().st_mtime_ns for path in stored} == stored
    assert len(codes_of(tmp_path)) == 6

    report = scored(Tools())  # without the recognizer, WER is known of two alone: kept, and not shown
    assert "wer" not in report["summary"]["all"]["metrics"]
    assert report["partial"]["WER"] == 2
    assert [("wer" in row["scores"]) for row in report["utterances"]] == [True, True, False, False, False, False]
    assert report["summary"]["all"]["metrics"]["success"]["counted"] == 6
    report = scored(Tools(recognizer=second))
    assert report["summary"]["all"]["metrics"]["wer"]["counted"] == 6
    assert report["partial"] == {}
    assert (first.asked, second.asked) == (2, 4)
    extended(1, ["own"])  # fewer change nothing
    assert finished(tmp_path).records == records
    again = Hearing()
    report = score_outputs(tmp_path, truths, Tools(recognizer=again), measured_with={"asr": "another"})
    assert again.asked == 6  # another recognizer hears all of them


def test_the_headline_has_directions_and_reasons(corpus: Corpus, codec: MelVQ, tmp_path: Path) -> None:
    copy_synthesis(codec, corpus, select(corpus), SpeakingSettings(), tmp_path)
    report = score_outputs(tmp_path, Truths(corpus, codec), Tools(recognizer=Hearing()))
    found = {row.name: row for row in headline(report)}
    assert [*found] == ["WER %", "CER %", "similarity, SIM codec", "naturalness", "success %"]
    assert (found["WER %"].mean, found["WER %"].interval, found["WER %"].better) == ("100.0", "100.0 to 100.0", "lower")
    assert found["success %"].better == "higher"
    assert found["naturalness"].mean == ""
    assert "--mos distillmos" in found["naturalness"].why
    assert [row["name"] for row in report["headline"]] == [*found]
    report["summary"]["all"]["metrics"].pop("codec_similarity")
    report["notes"] = ["no SIM codec: the codec has no speaker vectors"]
    assert {row.name: row.why for row in headline(report)}["similarity"] == report["notes"][0]
