"""What is measured of each utterance, and which are left out by it; with the real networks in full runs alone."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_codec import SPEC, TinyCodec, make_config
from tokenization.hostile import RATE, add, hashes, ledger, run
from tokenization.measured import STAND_INS, Peak

from slmkit.cli.main import main
from slmkit.corpora.base import Audio, Utterance
from slmkit.data.index import Corpus
from slmkit.data.ledger import Failure
from slmkit.data.shards import ShardReader
from slmkit.errors import ConfigError, UserError
from slmkit.tokenization import screen as screen_module
from slmkit.tokenization.decode import Decoding, decode
from slmkit.tokenization.job import finalize_corpus, plan_corpus
from slmkit.tokenization.screen import Screen, job_settings

FILTERS = {"min_dnsmos": 3.5, "min_speech_share": 0.5}
HUMAN = Path("/usr/share/sounds/alsa/Front_Center.wav")
NETWORKS = ("speechmos", "silero_vad", "onnxruntime")


@pytest.fixture
def stand_ins(monkeypatch):
    monkeypatch.setattr(screen_module, "MEASURES", dict(STAND_INS))
    monkeypatch.setattr(screen_module, "packaged_path", lambda package, file, what: file)


def wave(peak, loud, num_samples=8000):
    """The first `loud` of the samples go to and fro between `peak` and minus that."""
    places = np.arange(num_samples)
    return np.where(places < loud * num_samples, peak * (-1.0) ** places, 0.0).astype(np.float32)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """good and loud ones, quiet ones, ones that hardly speak; a manifest that says the quality of some."""
    root = tmp_path_factory.mktemp("screened")
    rows = []
    for name, sound, said in (
        ("good", wave(0.8, 0.6), {}),
        ("quiet", wave(0.3, 0.6), {}),
        ("mute", wave(0.3, 0.2), {}),
        ("praised", wave(0.3, 0.6), {"dnsmos": 3.5}),
        ("blamed", wave(0.8, 0.6), {"dnsmos": 3.4}),
        ("told", wave(0.8, 0.2), {"speech_share": 0.9}),
        ("short", wave(0.8, 0.6, 1000), {}),
        ("clipped", wave(0.99, 0.6), {}),
    ):
        add(root / f"{name}.wav", sound)
        rows.append({"path": f"{name}.wav", "text": "Words.", **said})
    soundfile.write(root / "good.wav", wave(0.8, 0.6, 24_000), 48_000)  # the recording is measured as it is
    (root / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return root / "m.jsonl"


def job(source, out, codec=None, **changes):
    changes = {"kind": "manifest", "measure": ["dnsmos", "speech_share"], "filters": FILTERS, "min_sec": 0.0} | changes
    return run(source, out, codec, **changes)


def samples(out):
    corpus = Corpus.open(out)
    reader = ShardReader(corpus)
    return {sample.key: sample.meta for sample in map(reader.read, range(len(corpus)))}


def test_a_corpus_is_filtered_by_what_it_says_and_else_by_what_is_measured(source, stand_ins, tmp_path):
    codec = TinyCodec()
    first = job(source, tmp_path / "out", codec, batch_sec=0.1)
    kept = samples(tmp_path / "out")
    columns = {key: (meta.get("dnsmos"), meta.get("speech_share")) for key, meta in kept.items()}
    assert columns == {"good": (4.0, 0.6), "praised": (3.5, 0.6), "told": (4.0, 0.9)}
    assert kept["praised"]["checks"].keys() == {"chars_per_sec", "clipped", "dc", "frames_off", "silence"}
    assert len(codec.batch_shapes) == 3  # what is refused is not encoded
    lines = {line["key"]: (line["reason"], line["detail"]) for line in ledger(tmp_path / "out")}
    assert lines == {
        "quiet": ("low_dnsmos", "dnsmos is 1.5 as measured, at least 3.5 is wanted"),
        "mute": ("low_speech_share", "speech_share is 0.2 as measured, at least 0.5 is wanted"),
        "blamed": ("low_dnsmos", "dnsmos is 3.4 by the source, at least 3.5 is wanted"),
        "short": ("no_dnsmos", "no peak; got 1000 samples"),
        "clipped": ("no_dnsmos", "the measured value is nan"),
    }
    assert next(line["key"] for line in ledger(tmp_path / "out")) == "blamed"  # by the plan, before anything is decoded
    # Law: no byte depends on workers, batches, tasks or interruptions.
    assert job(source, tmp_path / "workers", num_workers=2, window=3) == first
    config = {"kind": "manifest", "measure": ["speech_share", "dnsmos"], "filters": FILTERS, "min_sec": 0.0}
    plan_corpus(SPEC, make_config(source, tmp_path / "tasks", **config, shard_samples=3))
    for task in (1, 0):
        job(source, tmp_path / "tasks", task=task, num_tasks=2, shard_samples=3)
    finalize_corpus(tmp_path / "tasks", 0.0)  # filters are no failures
    assert samples(tmp_path / "tasks") == kept
    (tmp_path / "tasks" / "hostile-000001.index.json").unlink()
    before = hashes(tmp_path / "tasks")
    job(source, tmp_path / "tasks", shard_samples=3)
    assert {name: hashes(tmp_path / "tasks")[name] for name in before} == before


def test_it_is_measured_again_where_that_is_asked_for(source, stand_ins, tmp_path):
    job(source, tmp_path / "out", remeasure=True, filters={"min_dnsmos": 3.5})
    kept = samples(tmp_path / "out")
    assert sorted(kept) == ["blamed", "good", "told"]
    assert (kept["blamed"]["dnsmos"], kept["blamed"]["source_dnsmos"]) == (4.0, 3.4)
    assert (kept["told"]["speech_share"], kept["told"]["source_speech_share"]) == (0.2, 0.9)
    reasons = {line["key"]: line["reason"] for line in ledger(tmp_path / "out")}
    assert reasons["praised"] == "low_dnsmos"


def test_without_a_filter_the_values_are_kept_and_what_has_none_stays(source, stand_ins, tmp_path):
    job(source, tmp_path / "out", measure=["dnsmos"], filters={})
    kept = samples(tmp_path / "out")
    assert len(kept) == 8
    assert (kept["mute"]["dnsmos"], "speech_share" in kept["mute"]) == (1.5, False)
    assert "dnsmos" not in kept["short"]
    assert "dnsmos" not in kept["clipped"]


def test_other_networks_and_filters_are_another_job(source, stand_ins, tmp_path, monkeypatch):
    job(source, tmp_path / "out")
    with pytest.raises(UserError, match=r"another job: settings\.filters differs"):
        job(source, tmp_path / "out", filters={})
    monkeypatch.setattr(Peak, "NETWORK", ("", json.__file__))
    with pytest.raises(UserError, match=r"another job: settings\.networks differs"):
        job(source, tmp_path / "out")


def test_filters_that_leave_nothing_say_so(source, stand_ins, tmp_path):
    with pytest.raises(UserError, match=r"the filters leave nothing of the source\n.*low_dnsmos 6, no_dnsmos 2"):
        job(source, tmp_path / "strict", filters={"min_dnsmos": 4.5}, measure=["dnsmos"], remeasure=True)
    with pytest.raises(UserError, match=r"leave nothing of the source\n.*the source gives no dnsmos"):
        run(source.parent, tmp_path / "unmeasured", filters={"min_dnsmos": 3.5})
    with pytest.raises(ConfigError, match="remeasure, measure: got remeasure alone"):
        job(source, tmp_path / "alone", measure=[], remeasure=True)


def test_a_missing_extra_is_named_before_anything_is_read(source, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name in NETWORKS else find(name))
    words = ["tokenize", "plan", str(source), str(tmp_path / "no_codec"), str(tmp_path / "out"), "kind=manifest"]
    assert main([*words, "measure=[dnsmos]"]) == 2
    said = capsys.readouterr().err
    assert "measure=[dnsmos] needs the package speechmos" in said
    assert "pip install 'slmkit[measure]'" in said
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"measure=\[speech_share\] needs the package silero-vad"):
        job(source, tmp_path / "out", measure=["speech_share"])
    assert not (tmp_path / "out").exists()


@pytest.mark.full
@pytest.mark.skipif(not all(map(importlib.util.find_spec, NETWORKS)), reason="needs the extra slmkit[measure]")
def test_the_real_networks_give_a_value_or_a_reason_for_any_audio(tmp_path):
    """And the same in processes of their own."""
    rng, rate = np.random.default_rng(0), 44_100
    length = int(4.6 * rate)  # twice that is one window of DNSMOS
    sounds = {
        "noise": rng.uniform(-0.3, 0.3, length),
        "faint": rng.uniform(-1e-3, 1e-3, length),
        "clipped": np.sign(rng.uniform(-1, 1, length)),
        "10ms": rng.uniform(-0.3, 0.3, rate // 100),
        "sample": np.array([0.1, -0.1]),
    }
    if HUMAN.is_file():
        sounds["human"] = soundfile.read(HUMAN)[0]
    for name, sound in sounds.items():
        soundfile.write(tmp_path / f"{name}.wav", sound, 48_000 if name == "human" else rate)
    config = make_config(tmp_path, tmp_path, measure=["dnsmos", "speech_share"])
    assert set(job_settings(config)["networks"]) == {"dnsmos", "speech_share"}
    decoding, found = Decoding(sample_rate=RATE, screen=Screen.of(config)), {}
    for name in sounds:
        decoded = decode(Utterance(name, Audio(str(tmp_path / f"{name}.wav")), "x", name), decoding)
        if not isinstance(decoded, Failure):
            found[name] = decoded.utterance.extra
    assert found.keys() == sounds.keys()
    assert all(0 <= values["speech_share"] <= 1 for values in found.values())
    assert {name for name, values in found.items() if "dnsmos" not in values} == {"10ms", "sample"}
    assert all(0.5 < values.get("dnsmos", 1) < 5 for values in found.values())
    assert found["noise"]["speech_share"] < 0.1
    if HUMAN.is_file():
        assert found["human"]["dnsmos"] > 2.5 > found["noise"]["dnsmos"]
        assert found["human"]["speech_share"] > 0.5
