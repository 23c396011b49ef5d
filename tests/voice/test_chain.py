"""A codec without speaker vectors goes through the whole chain: without a voice, and with the vectors of an encoder."""

import json
import re
from pathlib import Path

import numpy as np
import plain_codec  # noqa: F401 - registers the codec
import pytest
import soundfile
from forked import PIPE, Process, run
from seeded_voice import seeded_voice, write_published_voice
from serve.serving import Client, code_of

from slmkit.cli.main import main
from slmkit.data.index import Corpus
from slmkit.data.shards import ShardReader
from slmkit.files import read_json

pytestmark = pytest.mark.full  # a chain takes 17 CPU seconds; infer/test_voiceless.py holds most of it in two
SCRIPT, CODEC = (Path(__file__).parents[1] / name for name in ("voiceless.py", "plain_codec.py"))
RATE, WORDS = 8000, ("One two.", "Three four.", "Five six.", "Seven eight.")


@pytest.fixture(scope="module", params=["alone", "voiced"])
def chain(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What voiceless.py left, in a directory with the name of the chain; recordings and voice beside it."""
    place = tmp_path_factory.mktemp("voiceless")
    lines = []
    for i, text in enumerate(WORDS):
        name = f"{'ab'[i % 2]}{i}"
        time_sec = np.arange(RATE + 800 * i) / RATE
        wave = 0.3 * np.sin(2 * np.pi * 300 * (i + 1) * time_sec) * np.sin(np.pi * (i + 1) * time_sec) ** 2
        soundfile.write(place / f"{name}.wav", wave, RATE)
        lines.append({"audio": f"{name}.wav", "text": text, "speaker": name[0], "key": name})
    (place / "all.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = [str(SCRIPT), str(place / "all.jsonl"), str(place / request.param)]
    if request.param == "voiced":
        words.append(str(write_published_voice(place / "voice")))
    done = run(words)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (place / "said").write_text(done.stdout)
    return place / request.param


def test_shards_have_the_vectors_of_the_encoder_or_none(chain: Path) -> None:
    corpus, voice = Corpus.open(chain / "shards"), seeded_voice()
    is_voiced = chain.name == "voiced"
    assert corpus.codec.speaker_dim == (256 if is_voiced else 0)
    assert corpus.codec.speaker_sha256 == (voice.sha256 if is_voiced else "")
    for number in range(len(corpus)):
        sample = ShardReader(corpus).read(number)
        wave, _ = soundfile.read(chain.parent / f"{sample.key}.wav", dtype="float32")
        if is_voiced:
            assert sample.speaker == pytest.approx(voice.vector(wave, RATE), abs=1e-4)
        else:
            assert sample.speaker is None


def test_it_speaks(chain: Path) -> None:
    whole, streamed, listed = (chain / file for file in ("a.wav", "streamed.wav", "spoken/wav/a.wav"))
    wave, rate = soundfile.read(whole)
    assert rate == RATE
    assert len(wave) > 400
    assert np.abs(soundfile.read(streamed)[0] - wave).max() < 2**-14
    assert whole.read_bytes() == listed.read_bytes()


def test_tensorboard_has_speech(chain: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(chain / "run" / "tensorboard" / "run"))
    events.Reload()
    assert {tag.rsplit("/", 1)[1] for tag in events.Tags()["audio"]} == {"generated", "reference"}


def test_the_model_knows_whether_it_hears_a_voice(chain: Path) -> None:
    assert read_json(chain / "model" / "config.json")["speaker_dim"] == (256 if chain.name == "voiced" else 0)


def test_scores_of_voices_are_there_or_left_out_with_a_reason(chain: Path) -> None:
    scores, ceiling = (read_json(chain / name / "report.json") for name in ("scores", "ceiling"))
    assert ceiling["summary"]["all"]["metrics"]["frame_agreement"]["mean"] == 1
    assert ceiling["utterances"][0]["voice"] == "own"
    if chain.name == "voiced":
        assert scores["utterances"][0]["voice"] == "own"
        for report in (scores, ceiling):
            assert report["notes"] == []
            assert -1 <= report["summary"]["all"]["metrics"]["codec_similarity"]["mean"] <= 1
        return
    assert scores["utterances"][0]["voice"] == "default"
    assert "frame_agreement" in scores["summary"]["all"]["metrics"]
    assert "codec_similarity" not in scores["summary"]["all"]["metrics"]
    reason = "neither the model nor the codec takes a voice"
    assert reason in scores["notes"][0]
    assert reason in (chain / "scores" / "report.html").read_text()
    assert reason in (chain.parent / "said").read_text()
    assert ceiling["notes"] == ["no SIM codec: the codec has no speaker vectors"]


def command(chain: Path, *words: str) -> list[str]:
    places = {"MODEL": chain / "model", "SHARDS": chain / "shards"}
    return [*(str(places.get(word, word)) for word in words), "--codec", str(chain / "codec")]


def test_a_voice_where_none_is_taken_is_refused(
    chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if chain.name == "voiced":
        pytest.skip("it takes voices")
    voice, out = str(chain.parent / "a0.wav"), str(tmp_path / "out")
    for words in (
        ["synthesize", "MODEL", "One.", "--speaker", voice, "--out", out],
        ["serve", "MODEL", "--voices", voice, "--port", "0"],
        ["evaluate", "MODEL", "--corpus", "SHARDS", "--voices", "own", "swapped", "--out", out],
        ["evaluate", "--copy", "--corpus", "SHARDS", "--voices", "swapped", "--out", out],
    ):
        assert main(command(chain, *words)) == 2, words
        said = capsys.readouterr().err
        assert "a voice would change nothing" in said, words
        assert "slmkit codec add --speaker" in said
    (tmp_path / "lines.jsonl").write_text(json.dumps({"text": "One.", "speaker": voice}) + "\n")
    words = ["synthesize", "MODEL", "--jsonl", str(tmp_path / "lines.jsonl"), "--out", out]
    assert main(command(chain, *words)) == 2
    assert "bad_speaker 1" in capsys.readouterr().err


def test_a_model_that_hears_a_voice_needs_one(chain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if chain.name == "alone":
        pytest.skip("it takes no voice")
    assert main(command(chain, "synthesize", "MODEL", "One.", "--out", str(tmp_path / "a.wav"))) == 2
    assert "no voice was given" in capsys.readouterr().err
    bare = ["codec", "add", str(chain / "published"), str(tmp_path / "bare")]
    assert main(bare) == 0
    words = ["synthesize", str(chain / "model"), "One.", "--codec", str(tmp_path / "bare")]
    assert main([*words, "--speaker", f"{chain / 'shards'}:a0", "--out", str(tmp_path / "a.wav")]) == 2
    assert "the model hears a speaker vector, and the given codec gives none" in capsys.readouterr().err


def test_the_server_has_one_voice_where_none_is_taken(chain: Path, tmp_path: Path) -> None:
    if chain.name == "voiced":
        pytest.skip("it takes voices")
    with (tmp_path / "log").open("w") as log_file:
        words = [str(CODEC), *command(chain, "serve", "MODEL", "--port", "0")]
        process = Process(words, stdout=PIPE, stderr=log_file)
    try:
        assert process.stdout is not None
        started = re.fullmatch(
            r"listening at http://127\.0\.0\.1:(\d+) with 1 voice: default\n", process.stdout.readline()
        )
        assert started, (tmp_path / "log").read_text()
        client = Client(int(started[1]))
        assert "default" in client.get("/v1/audio/voices").text
        for fields in ({}, {"stream": True}):
            answer = client.speech(input="One two.", voice="default", max_sec=1, **fields)
            assert answer.status_code == 200, answer.text
            assert len(answer.content) > 1000
        assert code_of(client.speech(input="One two.", voice="anna")) == "voice_not_found"
    finally:
        process.kill()
