"""An exported model and its codec speak; everything that does not fit together is named."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memorising import BASE, memorise, one_batch, small_model
from synthetic import write_corpus, write_samples

from slmkit.audio.io import read_audio, write_wav
from slmkit.codec.base import CodecSpec, to_codes
from slmkit.codec.melvq import MelVQ
from slmkit.codec.stream import JOINED_BOUND
from slmkit.data.examples import ExampleFormat, TrainingData
from slmkit.data.index import Corpus
from slmkit.data.rates import speech_rates
from slmkit.data.shards import Sample
from slmkit.data.sources import open_source
from slmkit.data.text import TextTokenizer
from slmkit.errors import UserError
from slmkit.infer.batch import engine_shape, speak_all
from slmkit.infer.items import read_items
from slmkit.infer.passage import unspoken
from slmkit.infer.request import Output, Request, SpeakingSettings
from slmkit.infer.samples import SpeechSamples
from slmkit.infer.sentences import split
from slmkit.infer.slots import SlotCache
from slmkit.infer.synthesizer import Synthesizer, Voices
from slmkit.infer.watch import LEAST_SEC
from slmkit.model.companions import rates_beside, write_companions
from slmkit.model.pretrained import extended_tokenizer, save

AUDIO = Path(__file__).resolve().parents[2] / "tokenize_jobs" / "sample_corpus"
FLACS = sorted(AUDIO.glob("1[12]/*/*.flac"))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A codec, a corpus of two short pieces of real speech, and a model that knows them by heart."""
    root = tmp_path_factory.mktemp("chain")
    waves = [read_audio(path, 16_000) for path in FLACS]
    codec = MelVQ.fit(waves, seed=0)
    codec.save(root / "codec")
    samples = []
    for path in FLACS[:2]:
        wave = torch.from_numpy(read_audio(path, 16_000)[4000:10_000])
        encoded = codec.encode(wave[None], torch.tensor([len(wave)]))
        text = path.with_suffix(".normalized.txt").read_text().strip()
        meta = {"text": text, "speaker": "s", "language": "en", "seconds": len(wave) / 16_000, "source": path.name}
        samples.append(Sample(path.stem, to_codes(encoded.codes[0]), encoded.speaker[0].numpy(), meta))
    write_samples(root / "corpus", samples, codec.spec)
    tokenizer = TextTokenizer.load(BASE)
    model = small_model(tokenizer, codec.spec, 3, speaker_dim=codec.spec.speaker_dim)
    memorise(model, one_batch(model, tokenizer, samples))
    save(model, root / "model", tokenizer=extended_tokenizer(BASE, model.layout))
    form = ExampleFormat(task="tts", group=3, speaker=True)
    source = open_source(root / "corpus", "tts")
    data = TrainingData.open(source, tokenizer, model.layout, form, cache_dir=None)
    write_companions(root / "model", codec.spec, rates=speech_rates(data.parts))
    return root


@pytest.fixture(scope="module")
def synthesizer(chain: Path) -> Synthesizer:
    return Synthesizer.load(chain / "model", chain / "codec")


def test_the_weights_are_of_the_type_that_was_asked_for(chain: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The codec stays as it is; a file that is spoken notes the type."""
    monkeypatch.setattr("slmkit.infer.synthesizer.multiplies_bfloat16", lambda: True)
    half = Synthesizer.load(chain / "model", chain / "codec", dtype="bfloat16")
    assert {weight.dtype for weight in half.model.parameters()} == {torch.bfloat16}
    assert engine_shape(half)["dtype"] == "bfloat16"
    exact = Synthesizer.load(chain / "model", chain / "codec", dtype="float32")
    assert exact.model.dtype == torch.float32
    assert "dtype" not in engine_shape(exact)
    voice = exact.read_speaker(FLACS[0])
    codes = [one.engine.generate([one.reading("The kettle", voice, max_sec=0.1)])[0].codes for one in (half, exact)]
    assert {part.dtype for part in codes} == {np.dtype(np.uint16)}
    monkeypatch.setattr("slmkit.infer.synthesizer.multiplies_bfloat16", lambda: False)
    with pytest.raises(UserError, match="this CPU does not multiply bfloat16 numbers"):
        Synthesizer.load(chain / "model", chain / "codec", dtype="bfloat16")


def test_a_model_without_speech_is_named(chain: Path) -> None:
    broken = Synthesizer.load(chain / "model", chain / "codec")
    with torch.no_grad():
        broken.model.lm_model.model.embed_tokens.weight[broken.model.layout.id_of("<sosp>")] = 0
    corpus = Corpus.open(chain / "corpus")
    voice = broken.read_speaker(f"{chain / 'corpus'}:{corpus.key(0)}")
    with pytest.raises(UserError, match="the model gave no speech for"):
        broken.speak("The kettle", voice)
    with pytest.raises(UserError, match="the model gave no speech for 'The kettle") as caught:
        broken.speak("The kettle " * 40, voice)
    assert len(str(caught.value)) < 500
    with pytest.raises(UserError, match="the model gave no speech"):
        list(broken.stream(broken.reading("The kettle", voice), voice))


def test_a_voice_too_loud_for_the_codec_is_named(synthesizer: Synthesizer) -> None:
    codes = np.zeros((3, 4), np.uint16)
    with pytest.raises(UserError, match="the codec made a sound that is not finite"):
        synthesizer.decode(codes, torch.full((80,), 200.0))


def test_damaged_weights_are_named(chain: Path) -> None:
    broken = Synthesizer.load(chain / "model", chain / "codec")
    with torch.no_grad():
        broken.model.heads[1].output.bias.fill_(torch.nan)
    with pytest.raises(UserError, match="the model gave numbers that are not finite"):
        broken.speak("The kettle is on the stove.", np.zeros(80, dtype=np.float32))


def test_voices_come_from_audio_vectors_and_corpora(
    chain: Path, synthesizer: Synthesizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Corpus.open(chain / "corpus")
    stored = synthesizer.read_speaker(f"{chain / 'corpus'}:{corpus.key(1)}")
    np.save(tmp_path / "voice.npy", stored)
    assert np.array_equal(synthesizer.read_speaker(tmp_path / "voice.npy"), stored)
    wave = read_audio(FLACS[1], 16_000)[4000:10_000]
    write_wav(tmp_path / "voice.wav", wave, 16_000)
    heard = synthesizer.read_speaker(tmp_path / "voice.wav")
    assert heard.shape == stored.shape
    assert np.abs(heard - stored).max() < 0.1
    named = Voices(synthesizer.codec, {"11": str(tmp_path / "voice.npy")})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "11").mkdir()  # no file, and so no voice
    assert np.array_equal(named.vector("11"), stored)
    assert np.array_equal(named.vector(""), stored)
    (tmp_path / "11").rmdir()
    (tmp_path / "11").write_bytes((tmp_path / "voice.wav").read_bytes())
    assert np.array_equal(Voices(synthesizer.codec, {"11": str(tmp_path / "voice.npy")}).vector("11"), heard)
    assert np.array_equal(named.vector(""), stored)


def test_more_slots_than_memory_are_an_error(synthesizer: Synthesizer) -> None:
    large = Synthesizer(synthesizer.model, synthesizer.tokenizer, synthesizer.codec, num_slots=2**44)
    with pytest.raises(UserError, match=r"no memory for so many(.|\n)*17592186044416 slots of \d+ positions, .* bytes"):
        large.engine  # noqa: B018 - made now


def test_bad_voices_are_named(chain: Path, synthesizer: Synthesizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot use .*missing\.wav as a voice"):
        synthesizer.read_speaker(tmp_path / "missing.wav")
    write_wav(tmp_path / "short.wav", np.full(3, 0.5), 16_000)
    with pytest.raises(UserError, match=r"cannot use .*short\.wav as a voice"):
        synthesizer.read_speaker(tmp_path / "short.wav")
    with pytest.raises(UserError, match="has no sample 'nobody'"):
        synthesizer.read_speaker(f"{chain / 'corpus'}:nobody")
    (tmp_path / "text.npy").write_text("hello")
    with pytest.raises(UserError, match="as a speaker vector"):
        synthesizer.read_speaker(tmp_path / "text.npy")
    for name, vector, message in (
        ("nan", np.full(80, np.nan), "numbers that are not finite in float32"),
        ("large", np.full(80, 1e300), "numbers that are not finite in float32"),
        ("whole", np.zeros(80, np.int32), r"int32 \(80,\)"),
        ("table", np.zeros((80, 1)), r"float64 \(80, 1\)"),
    ):
        np.save(tmp_path / f"{name}.npy", vector)
        with pytest.raises(UserError, match=rf"is not a speaker vector\n.*{message}"):
            synthesizer.read_speaker(tmp_path / f"{name}.npy")
    np.savez(tmp_path / "several.npz", a=np.zeros(80), b=np.zeros(80))
    (tmp_path / "several.npz").rename(tmp_path / "several.npy")
    with pytest.raises(UserError, match=r"as a speaker vector: it is an archive"):
        synthesizer.read_speaker(tmp_path / "several.npy")
    np.save(tmp_path / "long.npy", np.zeros(2**17, np.float32))
    with pytest.raises(UserError, match=r"it holds 131072 numbers"):
        synthesizer.read_speaker(tmp_path / "long.npy")
    with open(tmp_path / "promised.npy", "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (10**13,)})
        file.write(bytes(320))
    with pytest.raises(UserError, match="as a speaker vector"):
        synthesizer.read_speaker(tmp_path / "promised.npy")
    for name in ("x" * 5000, "\ud800", "a\0b", "/dev/zero", f"{'y' * 5000}:key", "."):
        for suffix in ("", ".npy"):
            with pytest.raises(UserError, match=r"as a (voice|speaker vector): |is not a speaker vector") as caught:
                synthesizer.read_speaker(name + suffix)
            assert len(str(caught.value)) < 1000
    with pytest.raises(UserError, match="the speaker vector is not of this codec"):
        synthesizer.speak("Hello", np.zeros(3, dtype=np.float32))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no text to speak"),
        (" \n", "no text to speak"),
        ("\u200b\ufeff\u00ad\x1b\ufe0f", "no text to speak"),
        ("a" * 50_001, "text to speak is too long"),
    ],
)
def test_bad_text_is_named(text: str, message: str, synthesizer: Synthesizer) -> None:
    with pytest.raises(UserError, match=message):
        synthesizer.speak(text, np.zeros(80, dtype=np.float32))


def test_a_question_is_answered_in_text_and_speech(synthesizer: Synthesizer) -> None:
    """The model has learnt to read alone; what counts is the prompt, and that nothing is lost of the answer."""
    voice = np.ones(80, dtype=np.float32)
    request = synthesizer.answering("Who wrote it?", voice, max_sec=0.25, max_text_tokens=9, seed=3)
    encode = synthesizer.tokenizer.encode
    ids = request.prompt.tokens[:, 0].tolist()
    assert ids[0] == synthesizer.model.layout.bos_id
    assert encode(": Who wrote it? You should speak like: ")[:5] == ids[2:7]
    assert len(request.prompt.speaker_positions) == 1
    ((number, output),) = synthesizer.engine.run([request])
    assert (number, output.limit) in [(0, "text_tokens"), (0, "seconds"), (0, None)]
    assert synthesizer.words_of(output).text == synthesizer.tokenizer.decode(output.text_ids).strip()
    with pytest.raises(UserError, match="there is no question to answer"):
        synthesizer.answering(" ", voice)
    with pytest.raises(UserError, match="max_sec: got -1"):
        synthesizer.answering("Who?", voice, max_sec=-1)


def test_an_answer_is_watched_by_what_the_corpus_and_its_text_let_expect(chain: Path, synthesizer: Synthesizer) -> None:
    voice, rates = np.ones(80, dtype=np.float32), rates_beside(chain / "model")
    watch = synthesizer.reading("Nine boats.", voice, max_retries=5).watch
    assert (watch.rate, watch.num_mark_tokens > 0, watch.max_retries) == (rates.widest, True, 5)
    assert 0 < watch.num_tokens <= len("Nine boats.")
    assert synthesizer.reading("Nine boats.", voice, watch=False).watch is None
    assert synthesizer.answering("Who?", voice).watch.num_tokens is None
    wave = torch.from_numpy(read_audio(FLACS[0], 16_000)[4000:20_000])
    still = torch.cat([wave, 1e-3 * torch.randn(32_000, generator=torch.Generator().manual_seed(0))])
    for sound, least, most in ((wave, 0, 0.5), (still, 1.5, 2.5)):
        encoded = synthesizer.codec.encode(sound[None], torch.tensor([len(sound)]))
        watch = synthesizer.reading("Nine boats.", encoded.speaker[0].numpy()).watch
        assert least <= watch.silent_sec(to_codes(encoded.codes[0])) <= most
    assert watch.silent_sec(to_codes(np.full((3, 9), 2**16 - 1))) == 0  # no codes of this codec: decoding them says so


def test_a_model_that_cannot_end_is_stopped_and_counted(chain: Path, tmp_path: Path) -> None:
    endless = Synthesizer.load(chain / "model", chain / "codec", num_slots=2)
    with torch.no_grad():
        for head, size in zip(endless.model.heads, endless.model.layout.codebook_sizes, strict=True):
            head.output.bias[size:] = -1e9
    voice, texts = np.ones(80, dtype=np.float32), [{"text": "Nine boats."}, {"text": "A clock."}]
    speaking = endless.stream(endless.reading("Nine boats.", voice), voice)
    heard = np.concatenate(list(speaking))
    assert (speaking.output.reason, speaking.output.attempts) == ("runaway", 1)
    assert len(heard) == 200 * speaking.output.codes.shape[1] <= 16_000 * LEAST_SEC
    np.save(tmp_path / "voice.npy", voice)
    (tmp_path / "lines.jsonl").write_text("\n".join(json.dumps({**text, "max_retries": 1}) for text in texts))
    listed = read_items(tmp_path / "lines.jsonl", "tts", SpeakingSettings(), speaker=str(tmp_path / "voice.npy"))
    summary = speak_all(endless, listed, tmp_path / "out", task="tts", model="m")
    assert "2 answers (0 stopped by a limit, 2 runaways, 2 tried again), 0 failures" in summary.line()
    records = [json.loads(line) for line in (tmp_path / "out" / "outputs.jsonl").read_text().splitlines()]
    assert {(r["reason"], r["attempts"], r["runaways"], r["warning"]) for r in records} == {("runaway", 2, 2, None)}
    assert "1 far too short" in summary._replace(num_short=1).line()


def test_an_export_is_heard_while_it_speaks(chain: Path, synthesizer: Synthesizer) -> None:
    text = FLACS[1].with_suffix(".normalized.txt").read_text().strip()
    speaker = synthesizer.read_speaker(f"{chain / 'corpus'}:{FLACS[1].stem}")
    speaking = synthesizer.stream(synthesizer.reading(text, speaker), speaker)
    wave = np.concatenate(list(speaking))
    whole = synthesizer.speak(text, speaker)
    assert np.abs(wave - whole.wave).max() <= JOINED_BOUND
    assert (speaking.output.reason, speaking.output.codes.tolist()) == ("end", whole.output.codes.tolist())
    assert (whole.output.is_success, whole.output.attempts) == (True, 1)
    assert 0 < speaking.first_audio_sec < 60


TEXT = "The kettle sang. Dr. Smith heard it at 5.30! " + "The small boat crossed the lake, " * 20 + "\n\n🎉 Who? 今天。"


def test_law_a_sentence_of_a_text_has_the_codes_of_the_sentence_alone(chain: Path, synthesizer: Synthesizer) -> None:
    """One at a time or several at once; a text of one sentence is what it always was."""
    voice = synthesizer.read_speaker(f"{chain / 'corpus'}:{FLACS[1].stem}")
    several = Synthesizer(synthesizer.model, synthesizer.tokenizer, synthesizer.codec, num_slots=3)
    options = {"temperature": 1.0, "seed": 5, "max_sec": 0.2, "max_text_tokens": 20, "watch": False}
    speech = several.speak(TEXT, voice, **options)
    texts = [sentence.text for sentence in split(TEXT)]
    assert [sentence.text for sentence in speech.sentences] == texts
    assert len(texts) == 6
    alone = synthesizer.engine.generate([synthesizer.reading(text, voice, **options) for text in texts])
    first, waves = 0, []
    for sentence, output in zip(speech.sentences, alone, strict=True):
        assert sentence[1:4] == (output.codes.shape[1], output.num_steps, output.reason)
        assert np.array_equal(speech.output.codes[:, first : first + sentence.frames], output.codes)
        first += sentence.frames
        waves.append(np.zeros(round(16_000 * sentence.pause_sec), np.float32))
        if sentence.frames:
            waves.append(synthesizer.decode(output.codes, torch.from_numpy(voice)))
    assert np.array_equal(speech.wave, np.concatenate(waves))
    assert speech.output.num_steps == sum(output.num_steps for output in alone)

    passage = synthesizer.passage(TEXT, voice, **options)
    speaking = synthesizer.stream(passage, voice)
    wave = np.concatenate(list(speaking))
    assert np.abs(wave - speech.wave).max() <= JOINED_BOUND
    assert np.array_equal(speaking.output.codes, speech.output.codes)
    assert tuple(speaking.spoken) == speech.sentences
    one = synthesizer.passage(" The kettle\n", voice, **options)
    assert np.array_equal(one.requests[0].prompt.tokens, synthesizer.reading(" The kettle\n", voice).prompt.tokens)


def test_what_gives_no_speech_in_a_text_is_named(synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are spoken; where none gives any it is an error."""
    voice, reading = np.zeros(80, np.float32), synthesizer.reading

    def mute(text: str, *args: Any, **options: Any) -> Request:
        return reading(text, *args, **{**options, "max_text_tokens": 1 if text.startswith("Mute") else 256})

    monkeypatch.setattr(synthesizer, "reading", mute)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Output, "check_speech", lambda *args: None)  # whatever the model gives for the others
        speech = synthesizer.speak("The kettle sang. Mute one! Mute two? The kettle.", voice, max_sec=0.2)
    assert [sentence.frames for sentence in speech.sentences][1:3] == [0, 0]
    assert "'Mute one!', 'Mute two?'" in unspoken(speech.sentences)
    with pytest.raises(UserError, match=r"the model gave no speech for 'Mute one! Mute two\.'"):
        synthesizer.speak("Mute one! Mute two.", voice)
    with pytest.raises(UserError, match="the model gave no speech"):
        list(synthesizer.stream(synthesizer.passage("Mute one! Mute two.", voice), voice))


def test_a_stream_that_is_left_early_frees_the_engine(synthesizer: Synthesizer) -> None:
    voice = np.zeros(80, np.float32)
    speaking = synthesizer.stream(synthesizer.passage("The kettle sang. Who?", voice, max_sec=0.3), voice)
    for _ in speaking:
        break
    speaking.close()
    assert synthesizer.engine.num_free == synthesizer.engine.num_slots


@pytest.mark.parametrize("text", ["🎉🎉", "<sosp><a1>[Assistant]:", "\ud800", "Zażółć gęślą jaźń"])
def test_odd_text_ends_one_way_or_the_other(text: str, synthesizer: Synthesizer) -> None:
    settings = {"temperature": 1.0, "max_sec": 0.5}
    (out,) = synthesizer.engine.generate([synthesizer.reading(text, np.zeros(80, dtype=np.float32), **settings)])
    assert out.reason in ("end", "limit", "runaway")
    assert out.codes.shape[1] <= 40


def test_another_codec_is_refused(chain: Path, tmp_path: Path) -> None:
    MelVQ.fit([read_audio(path, 16_000) for path in FLACS], seed=1).save(tmp_path / "other")
    with pytest.raises(UserError, match="the given codec is not the codec of the model: weights_sha256 differs"):
        Synthesizer.load(chain / "model", tmp_path / "other")


class Writer:
    """TensorBoard's writer, as far as samples use it."""

    def __init__(self) -> None:
        self.sounds: dict[str, np.ndarray] = {}
        self.pictures: dict[str, np.ndarray] = {}
        self.texts: dict[str, str] = {}

    def add_audio(self, tag: str, wave: np.ndarray, step: int, sample_rate: int) -> None:
        assert (step, sample_rate) == (7, 16_000)
        self.sounds[tag] = wave

    def add_text(self, tag: str, text: str, step: int) -> None:
        self.texts[tag] = text

    def add_image(self, tag: str, image: np.ndarray, step: int, dataformats: str) -> None:
        assert (step, dataformats) == (7, "HWC")
        self.pictures[tag] = image


def test_samples_for_tensorboard_leave_training_as_it_was(chain: Path, synthesizer: Synthesizer) -> None:
    speak = SpeechSamples(codec=chain / "codec", tokenizer=BASE, source=open_source(chain / "corpus", "tts"))
    writer, model = Writer(), synthesizer.model.train()
    speak(model, writer, 7)
    assert model.training
    assert len(writer.sounds) == 4
    for path in FLACS[:2]:
        assert writer.texts[f"speech/{path.stem}/text"] == speak.samples[FLACS.index(path)].meta["text"]
        generated, reference = (writer.sounds[f"speech/{path.stem}/{name}"] for name in ("generated", "reference"))
        assert np.array_equal(generated, reference)
        image = writer.pictures[f"speech/{path.stem}/mel"]
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        assert image.std() > 20


def test_a_sample_for_tensorboard_that_cannot_be_is_told_and_ends_nothing(
    chain: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A text that cannot be asked, and a model whose logits are not finite."""
    speak = SpeechSamples(codec=chain / "codec", tokenizer=BASE, source=open_source(chain / "corpus", "tts"))
    broken = Synthesizer.load(chain / "model", chain / "codec").model
    monkeypatch.setitem(speak.samples[0].meta, "text", "\u200b")
    with torch.no_grad():
        broken.heads[1].output.bias.fill_(torch.nan)
    writer = Writer()
    speak(broken.train(), writer, 7)
    assert broken.training
    assert writer.sounds == {}
    messages = [record.getMessage() for record in caplog.records if "TensorBoard" in record.getMessage()]
    assert [message.partition(": ")[2] for message in messages] == [
        "there is no text to speak",
        "the model gave numbers that are not finite",
    ]


def test_a_sample_for_tensorboard_without_memory_ends_nothing(
    chain: Path, synthesizer: Synthesizer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    speak = SpeechSamples(codec=chain / "codec", tokenizer=BASE, source=open_source(chain / "corpus", "tts"))
    model = synthesizer.model.train()
    monkeypatch.setattr(SlotCache, "__init__", full)
    speak(model, Writer(), 7)
    assert model.training
    assert "is not in TensorBoard: no memory" in caplog.text


def test_samples_need_a_corpus_of_the_same_codec(chain: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "other", 2)
    with pytest.raises(UserError, match="is not the codec of"):
        SpeechSamples(codec=chain / "codec", tokenizer=BASE, source=open_source(tmp_path / "other", "tts"))
    spec = dataclasses.replace(synthesizer_spec(chain), speaker_dim=0)
    write_corpus(tmp_path / "mute", 2, spec=spec)
    with pytest.raises(UserError, match="speech samples need speaker vectors"):
        SpeechSamples(codec=chain / "codec", tokenizer=BASE, source=open_source(tmp_path / "mute", "tts"))


def synthesizer_spec(chain: Path) -> CodecSpec:
    return Corpus.open(chain / "corpus").codec
