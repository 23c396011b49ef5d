"""The same synthetic speech in every layout: what goes in comes out, as an utterance or with its reason."""

import json
import pickle
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from raw_corpora import DEFECTS, MAX_SEC, TWICE, WRITERS, Spoken, read_source, utterances

from slmkit.corpora.base import Audio, Utterance, key_refusal, read_transcript, text_file
from slmkit.corpora.content import open_audio
from slmkit.data.ledger import Failure
from slmkit.errors import BadSample, UserError

COUNT = 36


@pytest.fixture(scope="module")
def spoken() -> list[Spoken]:
    return utterances(COUNT)


def refusal(utterance: Utterance, filters: dict) -> str:
    """What a job that encodes this utterance would refuse it for; "" for nothing."""
    audio_sec = utterance.seconds
    if audio_sec is not None and audio_sec > MAX_SEC:
        return "too_long"
    if filters["languages"] and utterance.language not in filters["languages"]:
        return "other_language"
    if filters["min_dnsmos"] is not None and utterance.extra["dnsmos"] < filters["min_dnsmos"]:
        return "low_dnsmos"
    try:
        text = read_transcript(utterance.text) if isinstance(utterance.text, Path) else utterance.text
        wave, rate = soundfile.read(open_audio(utterance.audio))
    except BadSample as error:
        return error.reason
    assert text == text.strip() != ""
    if utterance.cut is not None:
        cut = utterance.cut
        assert 0 <= cut.earliest_sec <= cut.start_sec < cut.end_sec <= cut.latest_sec <= len(wave) / rate + 0.5
        wave = wave[int(cut.start_sec * rate) : int(cut.end_sec * rate)]
    if len(wave) / rate > MAX_SEC:
        return "too_long"
    if utterance.seconds is not None:
        assert len(wave) / rate == pytest.approx(utterance.seconds, abs=0.15)  # mp3 and ogg are padded
    assert np.abs(wave).max() > 0.05
    return ""


def read_all(expected) -> list[Utterance | Failure]:
    settings = expected.settings
    columns = settings.get("columns", {})
    items = read_source(expected.kind, expected.source, columns=columns, language="en", max_sec=settings["max_sec"])
    seen: set[str] = set()
    return [item if isinstance(item, Failure) else key_refusal(item.key, seen) or item for item in items]


@pytest.mark.parametrize("layout", WRITERS)
def test_every_item_comes_out_once_and_every_defect_is_counted(layout, spoken, tmp_path):
    expected = WRITERS[layout](tmp_path / layout, spoken)
    assert expected.items == expected.good + sum(expected.reasons.values())
    items = read_all(expected)
    assert read_all(expected) == items
    outcomes = [
        item.reason if isinstance(item, Failure) else refusal(item, expected.settings["filters"]) for item in items
    ]
    reasons = Counter(outcomes)
    assert reasons.pop("") == expected.good
    assert reasons == expected.reasons
    assert len(items) == expected.items
    for item in items:
        assert item.line() if isinstance(item, Failure) else survives(item)


def survives(utterance: Utterance) -> bool:
    """JSON, and the way into another process."""
    again = Utterance.from_values(json.loads(json.dumps(utterance, default=text_file, allow_nan=False)))
    return again == utterance == pickle.loads(pickle.dumps(utterance))


@pytest.mark.parametrize("layout", sorted(WRITERS.keys() - {"segments"}))
def test_texts_and_speakers_come_through(layout, spoken, tmp_path):
    expected = WRITERS[layout](tmp_path / layout, spoken)
    good = {each.key.replace("-", "_"): each for each in spoken if each.defect not in (*DEFECTS[2:], TWICE)}
    found = {}
    for item in read_all(expected):
        if isinstance(item, Utterance):
            text = item.text.read_text() if isinstance(item.text, Path) else item.text
            found[item.key.replace("-", "_")] = (text.casefold(), item.speaker)
    assert {key: (each.text.casefold(), each.speaker) for key, each in good.items()}.items() <= found.items()


# --- read_source


@pytest.mark.parametrize("kind", ["libritts", "librispeech", "emilia", "parquet", "kaldi", "manifest"])
def test_a_source_that_is_not_there_or_of_another_kind_is_refused(kind, tmp_path):
    def read(source, columns=()):
        return read_source(kind, source, columns=dict(columns), language="", max_sec=30.0)

    with pytest.raises(UserError, match=r"does not exist\n.*next: +check the path"):
        read(tmp_path / "none")
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "notes.md").touch()
    with pytest.raises(UserError, match=r"no audio|no tars|no \.parquet|has no file wav\.scp|is not a manifest"):
        read(tmp_path / "some")
    for name in ("x\udce9", "x\0"):
        with pytest.raises(UserError, match="the path of the source is not valid UTF-8"):
            read(tmp_path / name)
    if kind not in ("parquet", "manifest"):
        with pytest.raises(UserError, match=f"columns have no meaning for the kind {kind}"):
            read(tmp_path / "some", {"text": "words"})


def test_an_unknown_kind_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"unknown kind of source[\s\S]*librispeech, [\s\S]*run --help` shows them"):
        read_source("tapes", tmp_path)
    with pytest.raises(UserError, match=r"got: +librespeech[\s\S]*did you mean librispeech\?"):
        read_source("librespeech", tmp_path)


def test_without_pyarrow_parquet_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "a.parquet").touch()
    with pytest.raises(UserError, match=r"needs pyarrow[\s\S]*pip install 'slmkit\[parquet\]'"):
        read_source("parquet", tmp_path, columns={}, language="", max_sec=30.0)
    with pytest.raises(UserError, match="needs pyarrow"):
        open_audio(Audio(str(tmp_path / "a.parquet"), row_group=0, column="audio"))
