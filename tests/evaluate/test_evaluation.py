"""Evaluations of models and of copy synthesis: what is broken in a known way gets the scores that it must."""

import dataclasses
import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import forked
import numpy as np
import pytest
import torch
from evaluated import AUDIO, codes_of, make_chain
from synthetic import write_corpus
from tiny_whisper import save_tiny_whisper

from slmkit.cli.main import main
from slmkit.codec.melvq import MelVQ
from slmkit.data.index import Corpus
from slmkit.errors import BadSample, UserError
from slmkit.evaluate.generation import copy_synthesis, generate
from slmkit.evaluate.outputs import finished, read_wave, voice_path, wav_path
from slmkit.evaluate.report import write_page
from slmkit.evaluate.results import read_report
from slmkit.evaluate.scoring import score_outputs
from slmkit.evaluate.selection import NamedVoice, read_voices, select
from slmkit.evaluate.spoken import Tools, Truths
from slmkit.infer.engine import Engine
from slmkit.infer.items import SpeakingTask
from slmkit.infer.request import SpeakingSettings
from slmkit.infer.synthesizer import Synthesizer, voice_of
from slmkit.model.pretrained import export_sha256

MODEL = "made in the test"


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_chain(tmp_path_factory.mktemp("chain"))


class Listener:
    """A recognizer that knows what waves of each length say, and hears nothing else."""

    spellings: dict[str, str] = {}  # noqa: RUF012 - as the protocol has it

    def __init__(self, says: dict[int, str]) -> None:
        self.says = says

    def text(self, wave: np.ndarray, sample_rate: int) -> str:
        return self.says.get(len(wave), "")


class CodecVoice:
    """The codec's own vector in place of WavLM's."""

    def __init__(self, codec: MelVQ) -> None:
        self.codec = codec

    def vector(self, wave: np.ndarray, sample_rate: int) -> np.ndarray:
        return voice_of(self.codec, wave)


def means(report: dict[str, Any], group: str = "all") -> dict[str, float]:
    return {name: found["mean"] for name, found in report["summary"][group]["metrics"].items()}


def spoken(
    out: Path,
    synthesizer: Synthesizer,
    corpus: Corpus,
    settings: SpeakingSettings | None = None,
    task: SpeakingTask = "tts",
    **choice: Any,
) -> dict[str, Any]:
    """Generate and score, with a recognizer that hears nothing."""
    generate(synthesizer, corpus, select(corpus, **choice), settings or SpeakingSettings(), out, model=MODEL, task=task)
    codec = synthesizer.codec
    return score_outputs(out, Truths(corpus, codec), Tools(recognizer=Listener({})))


def test_a_model_that_knows_the_corpus_reaches_copy_synthesis(
    chain: Path, corpus: Corpus, codec: MelVQ, synthesizer: Synthesizer, tmp_path: Path
) -> None:
    items = select(corpus, ["own", "swapped"])
    generate(
        synthesizer,
        corpus,
        items,
        SpeakingSettings(),
        tmp_path / "model",
        model=export_sha256(chain / "model"),
        name="m",
    )
    copy_synthesis(codec, corpus, items, SpeakingSettings(), tmp_path / "copy")
    told: list[str] = []
    model, copy = (
        score_outputs(tmp_path / name, Truths(corpus, codec), Tools(), tell=told.append) for name in ("model", "copy")
    )
    assert all((a == b).all() for a, b in zip(codes_of(tmp_path / "model"), codes_of(tmp_path / "copy"), strict=True))
    for name, mean in means(copy).items():
        if mean is not None:
            assert means(model)[name] == mean, name
    assert means(model)["success"] == 1.0
    assert means(model)["frame_agreement"] == 1.0
    assert means(model)["log_mel_distance_db"] < 0.5  # 16-bit rounding of the stored wave
    assert means(model, "voice own").keys() >= {"frame_agreement", "log_mel_distance_db"}
    assert "frame_agreement" not in means(model, "voice swapped")
    # The voice follows the vector that was asked for, and not the speaker of the sentence.
    assert means(model, "voice swapped")["codec_similarity"] > 0.9
    assert means(model, "voice swapped")["other_voice_similarity"] < 0.6
    assert means(model)["frames_per_step"] == pytest.approx(200 / sum(row["steps"] for row in model["utterances"]))
    assert model["summary"]["all"]["metrics"]["real_time_factor"]["low"] is None
    assert [line.split() for line in (told[0], *told[3:5])] == [
        ["8", "utterances"],
        ["mean", "95", "%", "bootstrap", "interval"],
        ["success", "%", "100.0", "100.0", "to", "100.0"],
    ]
    assert " ".join(told[1:3]).split()[:7] == ["not", "known:", "the", "model", "does", "not", "say"]
    assert "  WER                       not computed, because no recognizer was given: --asr" in told
    # The corpus has no plan that knows the files.
    assert ["mel", "to", "source", "dB", "n/a", "4", "left", "out"] in [line.split() for line in told]
    assert max(map(len, told)) <= 80


def test_a_codec_that_swaps_voices_is_found_out(corpus: Corpus, codec: MelVQ, tmp_path: Path) -> None:
    """The right codes in the wrong voice: only the similarity tells."""

    class Swapping(MelVQ):
        def decode(self, codes: torch.Tensor, speaker: torch.Tensor) -> torch.Tensor:
            return super().decode(codes, torch.flip(speaker, dims=[1]))

    swapping = Swapping(codec._weights["codebooks"], codec._weights["average"])
    copy_synthesis(swapping, corpus, select(corpus), SpeakingSettings(), tmp_path / "out")
    report = score_outputs(tmp_path / "out", Truths(corpus, codec), Tools())
    assert means(report)["frame_agreement"] == 1.0
    assert means(report)["codec_similarity"] < 0.5


def test_a_model_with_random_weights_fails_in_every_metric(chain: Path, corpus: Corpus, tmp_path: Path) -> None:
    broken = Synthesizer.load(chain / "model", chain / "codec")
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in broken.model.parameters():
            weight.normal_(std=0.02)
    report = spoken(tmp_path / "out", broken, corpus, SpeakingSettings(max_text_tokens=20))
    assert [row["frames"] for row in report["utterances"]] == [0] * 4
    assert {row["limit"] for row in report["utterances"]} == {"text_tokens"}
    found = report["summary"]["all"]["metrics"]
    assert found["success"]["mean"] == 0
    assert found["frame_agreement"]["mean"] == 0
    assert (found["wer"]["mean"], found["cer"]["mean"]) == (1.0, 1.0)  # every word deleted
    assert found["log_mel_distance_db"]["mean"] > 15  # of silence to speech
    assert found["codec_similarity"] == {"mean": None, "low": None, "high": None, "counted": 0, "left_out": 4}
    assert not list((tmp_path / "out" / "wav").glob("*"))


def test_a_model_that_never_ends_has_no_success(chain: Path, corpus: Corpus, tmp_path: Path) -> None:
    endless = Synthesizer.load(chain / "model", chain / "codec")
    with torch.no_grad():
        for head, size in zip(endless.model.heads, endless.model.layout.codebook_sizes, strict=True):
            head.output.weight[size:] = 0  # the class of the end can no longer win
    report = spoken(tmp_path / "out", endless, corpus, SpeakingSettings(max_sec=0.5), limit=2)
    assert {(row["reason"], row["limit"], row["frames"]) for row in report["utterances"]} == {("limit", "seconds", 40)}
    assert means(report)["success"] == 0
    assert 0.5 < means(report)["frame_agreement"] <= 25 / 40  # what comes after the end counts as wrong


def test_words_are_scored_against_the_sentence(corpus: Corpus, codec: MelVQ, tmp_path: Path) -> None:
    """A recognizer that hears the first sentence in everything: right once, wrong in counted words elsewhere."""
    copy_synthesis(codec, corpus, select(corpus, limit=2), SpeakingSettings(), tmp_path / "out")
    length = len(Truths(corpus, codec).copy(0))
    tools = Tools(recognizer=Listener({length: "The kettle is on the stove!"}))
    report = score_outputs(tmp_path / "out", Truths(corpus, codec), tools, measured_with={"asr": "a listener"})
    first, second = report["utterances"]
    assert (first["text"], second["text"]) == ("The kettle is on the stove.", "We left before the rain began.")
    assert first["scores"]["wer"] == [0, 6]
    assert second["scores"]["wer"] == [6, 6]
    assert means(report)["wer"] == 6 / 12
    assert report["measured_with"] == {"asr": "a listener"}


def test_scoring_again_adds_scores_and_keeps_outputs(corpus: Corpus, codec: MelVQ, tmp_path: Path) -> None:
    out = tmp_path / "out"
    copy_synthesis(codec, corpus, select(corpus, limit=2), SpeakingSettings(), out)
    stored = {path: path.stat().st_mtime_ns for path in sorted(out.rglob("*")) if path.is_file()}
    truths = Truths(corpus, codec)
    score_outputs(out, truths, Tools(recognizer=Listener({})), measured_with={"asr": "a"})
    report = score_outputs(out, truths, Tools(), measured_with={"utmos": "u"})
    assert report["measured_with"] == {"asr": "a", "utmos": "u"}
    assert means(report)["wer"] == 1.0
    assert means(report)["codec_similarity"] > 0.9
    assert report == read_report(out)
    assert {path: path.stat().st_mtime_ns for path in stored} == stored


def test_what_a_measure_cannot_tell_is_left_out_and_counted(corpus: Corpus, codec: MelVQ, tmp_path: Path) -> None:
    class Judge:
        def score(self, wave: np.ndarray, sample_rate: int) -> float:
            if np.abs(wave - second).max() < 1e-3:
                raise BadSample("too_short", "the wave is too short")
            return 3.5

    second = Truths(corpus, codec).copy(1)
    copy_synthesis(codec, corpus, select(corpus, limit=3), SpeakingSettings(), tmp_path / "out")
    report = score_outputs(tmp_path / "out", Truths(corpus, codec), Tools(utmos=Judge()))
    assert [row["scores"]["utmos"] for row in report["utterances"]] == [[3.5, 1.0], None, [3.5, 1.0]]
    found = report["summary"]["all"]["metrics"]["utmos"]
    assert found == {"mean": 3.5, "low": 3.5, "high": 3.5, "counted": 2, "left_out": 1}


def test_voices_that_were_not_trained_on_are_told_apart(corpus: Corpus, codec: MelVQ, tmp_path: Path) -> None:
    copy_synthesis(codec, corpus, select(corpus), SpeakingSettings(), tmp_path / "out")
    report = score_outputs(tmp_path / "out", Truths(corpus, codec), Tools(), unseen=frozenset(["12"]))
    assert [(name, group["utterances"]) for name, group in report["summary"].items()] == [
        ("all", 4),
        ("seen voices", 2),
        ("unseen voices", 2),
    ]


def test_questions_are_scored_by_their_answers(
    chain: Path, corpus: Corpus, codec: MelVQ, synthesizer: Synthesizer, tmp_path: Path
) -> None:
    """A model that learnt the answers is as right as copy synthesis; one with other weights is not; of speech counts
    what was heard."""
    settings, truths = SpeakingSettings(max_text_tokens=30, max_sec=1.0), Truths(corpus, codec)
    items, reports = select(corpus, limit=2), {}
    tools = Tools(recognizer=Listener({len(truths.copy(0)): "another"}))
    broken = Synthesizer.load(chain / "model", chain / "codec")
    with torch.no_grad():
        broken.model.lm_model.model.layers[0].self_attn.v_proj.weight.zero_()
    copy_synthesis(codec, corpus, items, settings, tmp_path / "copy", task="qa")
    generate(synthesizer, corpus, items, settings, tmp_path / "model", model=MODEL, task="qa")
    generate(broken, corpus, items, settings, tmp_path / "broken", model=MODEL, task="qa")
    for name in ("copy", "model", "broken"):
        reports[name] = score_outputs(tmp_path / name, truths, tools)
    for name in ("copy", "model"):
        found = means(reports[name])
        assert (found["success"], found["exact_match"], found["f1"], found["frame_agreement"]) == (1, 1, 1, 1), name
        assert (found["speech_exact_match"], found["speech_f1"]) == (1, 1)  # "another" is a true answer, too
        row = reports[name]["utterances"][0]
        assert row["question"] == "What of 11_101_000000_000000?"
        assert row["true_answers"] == ["The kettle is on the stove.", "another"]
        assert row["answer"] == "The kettle is on the stove."
        assert row["scores"]["wer"] == [6, 6]  # of what was heard against the answer in text
    assert means(reports["broken"])["exact_match"] == 0
    assert means(reports["broken"])["f1"] < 0.5
    with pytest.raises(UserError, match="has no question"):
        unasked = write_corpus(tmp_path / "unasked", 1, spec=codec.spec)
        copy_synthesis(codec, unasked, select(unasked), settings, tmp_path / "x", task="qa")


def test_what_cannot_be_asked_counts_as_a_failure(
    chain: Path, corpus: Corpus, synthesizer: Synthesizer, tmp_path: Path
) -> None:
    """Prompts that leave no room for an answer are refused by the engine, and kept in the scores."""
    small = Synthesizer(synthesizer.model, synthesizer.tokenizer, synthesizer.codec)
    small.engine = Engine(synthesizer.model, num_slots=1, num_positions=12)
    report = spoken(tmp_path / "out", small, corpus, limit=2)
    assert {row["reason"] for row in report["utterances"]} == {"refused"}
    assert report["utterances"][0]["why"] == "the prompt leaves no room for an answer"
    assert means(report)["success"] == 0
    asked = spoken(tmp_path / "qa", small, corpus, task="qa", limit=2)
    assert (means(asked)["exact_match"], means(asked)["speech_f1"], means(asked)["wer"]) == (0, 0, 1)
    write_page(tmp_path / "out", report, Truths(corpus, small.codec))
    assert "There is no answer: the prompt leaves no room" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("part", ["engine", "codec"])
def test_what_the_machine_failed_at_has_no_score(
    part: str, corpus: Corpus, synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither for good nor for this time: the start is an error, and the next one speaks what is left."""
    name = {"engine": "step", "codec": "decode"}[part]
    place = getattr(synthesizer, part)
    works, calls = getattr(place, name), 0

    def failing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls < 4 if part == "engine" else calls == 1:
            raise torch.OutOfMemoryError("no memory")
        return works(*args)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, failing)
        with pytest.raises(UserError, match="the engine failed at"):
            spoken(tmp_path / "out", synthesizer, corpus, SpeakingSettings(max_sec=0.3, watch=False))
    report = spoken(tmp_path / "out", synthesizer, corpus, SpeakingSettings(max_sec=0.3, watch=False))
    assert {row["reason"] for row in report["utterances"]} == {"limit"}


@pytest.mark.full
def test_a_killed_run_goes_on_and_gives_the_same(chain: Path, tmp_path: Path) -> None:
    """Killed without warning once the first output is there; sampled, in two voices, two at a time."""
    words = [str(chain / "model"), "--corpus", str(chain / "corpus"), "--codec", str(chain / "codec"), "--limit", "0"]
    words += ["--only", "generate", "--slots", "2", "--voices", "own", "swapped", "--temperature", "1.2"]
    words += ["--text-temperature", "0", "--max-sec", "1"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = forked.Process(["-m", "slmkit", "evaluate", *words, "--out", str(killed)])
    records = killed / ".outputs.part"
    while not records.exists() or not records.read_bytes().count(b"\n"):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with open(records, "ab") as file:
        file.write(b'{"place": 7, "torn')
    assert 0 < records.read_bytes().count(b"\n") < 8
    torch.set_num_threads(1)
    assert main(["evaluate", *words, "--out", str(killed)]) == 0
    assert main(["evaluate", *words, "--out", str(whole)]) == 0
    for kind in ("codes/*.npy", "wav/*.wav"):
        names = sorted(path.relative_to(whole) for path in whole.glob(kind))
        assert len(names) == 8
        assert all((killed / name).read_bytes() == (whole / name).read_bytes() for name in names)
    first, second = (finished(out).records for out in (killed, whole))
    assert [dataclasses.replace(record, engine_sec=0.0) for record in first] == [
        dataclasses.replace(record, engine_sec=0.0) for record in second
    ]
    assert len({codes.tobytes() for codes in codes_of(whole)}) == 8  # sampled: a sentence is not the same twice


def test_an_utterance_comes_out_the_same_in_any_choice(
    corpus: Corpus, synthesizer: Synthesizer, tmp_path: Path
) -> None:
    settings = SpeakingSettings(temperature=1.2, text_temperature=0, max_sec=0.3)
    key = corpus.key(2)
    generate(synthesizer, corpus, select(corpus), settings, tmp_path / "all", model=MODEL)
    generate(synthesizer, corpus, select(corpus, keys=[key]), settings, tmp_path / "one", model=MODEL)
    (alone,) = codes_of(tmp_path / "one")
    assert alone.shape[1] == 24
    assert np.array_equal(alone, codes_of(tmp_path / "all")[2])
    other = dataclasses.replace(settings, seed=1)
    generate(synthesizer, corpus, select(corpus, keys=[key]), other, tmp_path / "other", model=MODEL)
    assert not np.array_equal(alone, codes_of(tmp_path / "other")[0])


def test_a_voice_from_outside_is_followed(
    chain: Path, corpus: Corpus, codec: MelVQ, synthesizer: Synthesizer, tmp_path: Path
) -> None:
    """The vector is kept with the outputs, so that they can be scored when its file is gone."""
    stranger = Truths(corpus, codec).vector(3)
    np.save(tmp_path / "voice.npy", stranger)
    name = str(tmp_path / "voice.npy")
    voices = read_voices([name], codec, synthesizer)
    items = select(corpus, voices, limit=1)
    outside = [voice for voice in voices if isinstance(voice, NamedVoice)]
    generate(synthesizer, corpus, items, SpeakingSettings(), tmp_path / "out", model=MODEL, voices=outside)
    (tmp_path / "voice.npy").unlink()
    report = score_outputs(tmp_path / "out", Truths(corpus, codec), Tools(wavlm=CodecVoice(codec)))
    assert means(report)["codec_similarity"] > 0.9
    assert report["utterances"][0]["speaker"] == name
    assert report["utterances"][0]["scores"]["wavlm_similarity"] is None  # there is no recording of it
    with pytest.raises(UserError, match="copy synthesis has only the voices of the corpus"):
        read_voices([name], codec, None)
    narrow = NamedVoice("narrow", np.zeros(3, np.float32))
    with pytest.raises(UserError, match="the voice narrow is not of this codec"):
        generate(synthesizer, corpus, items, SpeakingSettings(), tmp_path / "x", model=MODEL, voices=[narrow])


def test_a_voice_that_is_not_given_again_is_the_one_that_was_stored(
    corpus: Corpus, synthesizer: Synthesizer, tmp_path: Path
) -> None:
    """By a start that was killed before it spoke all of its utterances."""
    voice, out, asked = NamedVoice("v.npy", np.full(80, 0.5, np.float32)), tmp_path / "out", []
    settings = SpeakingSettings(max_sec=0.1)

    def speak(*voices: str | NamedVoice) -> None:
        outside = [voice for voice in voices if isinstance(voice, NamedVoice)]
        selected = select(corpus, voices, limit=1)
        generate(synthesizer, corpus, selected, settings, out, model=MODEL, voices=outside)
        asked.append([codes.tobytes() for codes in codes_of(out)])

    speak(voice)
    wav_path(out, 0).unlink()
    speak("own")
    assert asked[1][:1] == asked[0]
    wave = read_wave(wav_path(out, 0))
    assert np.abs(wave - synthesizer.decode(codes_of(out)[0], torch.from_numpy(voice.vector))).max() < 1e-4
    wav_path(out, 0).unlink()
    voice_path(out, 0).unlink()
    with pytest.raises(UserError, match=r"voices/00\.npy"):
        speak("own")


@pytest.mark.parametrize("lost", ["wav/00001.wav", "codes/00001.npy"])
@pytest.mark.parametrize("is_copy", [False, True])
def test_what_is_lost_is_made_again(
    is_copy: bool, lost: str, corpus: Corpus, synthesizer: Synthesizer, tmp_path: Path
) -> None:
    def speak() -> None:
        chosen = corpus, select(corpus, limit=2), SpeakingSettings(max_sec=0.1), tmp_path / "o"
        if is_copy:
            copy_synthesis(synthesizer.codec, *chosen)
        else:
            generate(synthesizer, *chosen, model=MODEL)

    speak()
    content = (tmp_path / "o" / lost).read_bytes()
    (tmp_path / "o" / lost).unlink()
    speak()
    assert (tmp_path / "o" / lost).read_bytes() == content
    assert len(finished(tmp_path / "o").records) == 2


def test_what_does_not_fit_together_is_refused(
    chain: Path, corpus: Corpus, codec: MelVQ, synthesizer: Synthesizer, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="holds no model"):
        export_sha256(tmp_path)
    silent = dataclasses.replace(corpus, codec=dataclasses.replace(corpus.codec, speaker_dim=0))
    with pytest.raises(UserError, match="its speaker vectors are not the codec's"):
        copy_synthesis(codec, silent, select(corpus), SpeakingSettings(), tmp_path / "out")
    foreign = dataclasses.replace(corpus, codec=dataclasses.replace(corpus.codec, weights_sha256="0"))
    with pytest.raises(UserError, match="weights_sha256 differs"):
        copy_synthesis(codec, foreign, select(corpus), SpeakingSettings(), tmp_path / "out")
    with pytest.raises(ValueError, match="max_sec"):
        SpeakingSettings(max_sec=math.nan)


@pytest.mark.full
def test_the_command(chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both stages, then one more, then two evaluations side by side."""
    parts = ["--corpus", str(chain / "corpus"), "--codec", str(chain / "codec")]
    model, copy = str(tmp_path / "model"), str(tmp_path / "copy")
    assert main(["evaluate", str(chain / "model"), *parts, "--out", model, "--limit", "1"]) == 0
    printed = capsys.readouterr().out
    assert "  success %                    100.0   100.0 to 100.0" in printed
    assert printed.splitlines()[-1] == f"see {model}/report.html"
    (tmp_path / "unseen").write_text("12\n")
    again = ["--only", "score", "--unseen-speakers", str(tmp_path / "unseen")]
    assert main(["evaluate", *parts, "--out", model, *again]) == 0
    assert "unseen voices" in json.loads((tmp_path / "model" / "report.json").read_text())["summary"]
    assert main(["evaluate", "--copy", *parts, "--out", copy, "--limit", "1", "--only", "generate"]) == 0
    assert main(["evaluate", *parts, "--out", copy, "--only", "score"]) == 0
    assert main(["evaluate", "--compare", model, copy, "--out", str(tmp_path / "table")]) == 0
    assert ["model", "copy"] in [line.split() for line in capsys.readouterr().out.splitlines()]
    for words, message in (
        ([*parts, "--out", "x"], "expected a model or --copy"),
        ([*parts, "--copy", "--trained", "--out", "x"], "--trained chooses what a model was trained on"),
        ([str(chain / "model"), "--out", "x"], "an evaluation needs a corpus"),
        ([str(chain / "model"), *parts, "--out", "x", "--temperature", "-1"], "temperature"),
        ([str(chain / "model"), *parts, "--out", "x", "--max-sec", "0"], "max_sec"),
        (["--compare", model, "--out", str(tmp_path / "t")], "nothing to compare"),
    ):
        assert main(["evaluate", *words]) == 2
        assert message in capsys.readouterr().err


def test_what_is_not_there_is_refused_before_torch_is_imported(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it fails
    parts = ["--corpus", str(chain / "corpus"), "--codec", str(chain / "codec")]
    model, out = str(chain / "model"), str(tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    for words, message in (
        ([str(tmp_path / "no"), *parts, "--out", out], "the model does not exist"),
        ([str(chain / "corpus"), *parts, "--out", out], "corpus is not a model that `slmkit consolidate` wrote"),
        ([model, "--corpus", str(chain / "model"), *parts[2:], "--out", out], "model is not a tokenized corpus"),
        ([model, *parts, "--out", out, "--asr", str(tmp_path / "no")], "the Whisper model does not exist"),
        ([model, *parts, "--out", str(tmp_path / "full")], "the output directory exists and holds something else"),
        ([*parts, "--out", out, "--only", "score"], "holds no generated outputs"),
        ([model, *parts, "--out", out, "--copy-quality"], "--copy-quality: it is the codec's copies"),
        ([model, *parts, "--out", out, "--common"], "--common: there are no evaluations to compare"),
        ([model, *parts, "--out", out, "--compare", out], "MODEL, --corpus, --codec: --compare takes no such thing"),
    ):
        assert main(["evaluate", *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.full
def test_the_command_measures_with_real_parts(chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recognizer that was taught nothing, STOI and PESQ against the recordings, the model's own hidden states."""
    save_tiny_whisper(tmp_path / "whisper", steps=0)
    assert main(["tokenize", "run", str(AUDIO), str(chain / "codec"), str(tmp_path / "shards")]) == 0
    parts = ["--corpus", str(tmp_path / "shards"), "--codec", str(chain / "codec"), "--limit", "1"]
    words = ["--copy", *parts, "--out", str(tmp_path / "copy"), "--asr", str(tmp_path / "whisper"), "--copy-quality"]
    assert main(["evaluate", *words]) == 0
    report = read_report(tmp_path / "copy")
    assert report["measured_with"] == {"asr": str(tmp_path / "whisper")}
    assert 0.9 < means(report)["stoi"] < 1
    assert 1 < means(report)["pesq"] < 4.6
    assert 4 < means(report)["source_distance_db"] < 8  # as the codec's copies are
    assert means(report)["wer"] >= 0.5
    (row,) = report["utterances"]
    assert "heard" in row
    assert f"listen/{row['place']:05d}-recording.wav" in (tmp_path / "copy" / "report.html").read_text()
    parts = ["--corpus", str(chain / "corpus"), "--codec", str(chain / "codec"), "--limit", "1", "--alignment"]
    model = ["evaluate", str(chain / "model"), *parts]
    assert main([*model, "--out", str(tmp_path / "model")]) == 0
    found = means(read_report(tmp_path / "model"))
    assert -1 < found["alignment_cosine"] < 1
    assert found["alignment_euclidean"] > 0
    assert found["alignment_riemannian"] > 0
    capsys.readouterr()
    assert main(["evaluate", "--copy", *parts, "--out", str(tmp_path / "other")]) == 2
    assert "--alignment needs the model that generated the outputs" in capsys.readouterr().err
