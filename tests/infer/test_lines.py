"""Lines of a file become items or failures, each bad one with its reason."""

import dataclasses
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.errors import UserError
from slmkit.infer import items as item_lines
from slmkit.infer.items import MAX_ITEM_BYTES, Listed, SpeakingTask, SpeechItem
from slmkit.infer.request import SpeakingSettings
from slmkit.infer.sampling import Sampling

DEFAULTS = SpeakingSettings(temperature=0.5, seed=3)
BAD = [
    (b"not json", "not_json", "the line is not JSON"),
    (b"[1]", "not_json", "the line is not an object"),
    (b'{"text": "caf\xe9"}', "not_json", "the line is not JSON"),
    (b"[" * 100_000, "not_json", "the line is not JSON"),
    (b'{"text": "%s"}' % (b"x" * MAX_ITEM_BYTES), "too_long", "the line is too long"),
    (b'{"text": "x", "id": "../x"}', "bad_id", "an id that cannot name a file"),
    (b'{"text": "x", "id": ".x"}', "bad_id", "an id that cannot name a file"),
    (b'{"text": "x", "id": ""}', "bad_id", "an id that cannot name a file"),
    (b'{"text": "x", "id": true}', "bad_id", "an id that cannot name a file"),
    (b'{"text": "x", "id": "%s"}' % (b"x" * 101), "bad_id", "an id that cannot name a file"),
    (b'{"text": "x", "tempature": 1}', "unknown_field", "a field is not known: tempature"),
    (b'{"question": "x"}', "unknown_field", "a field is not known: question"),
    (b'{"id": "a"}', "empty_text", "there is no text"),
    (b'{"text": " \\n"}', "empty_text", "there is no text"),
    (b'{"text": "\\u200b\\ufeff\\u00ad\\u0000\\ufe0f"}', "empty_text", "there is no text"),
    (b'{"text": 7}', "empty_text", "there is no text"),
    (b'{"text": "%s"}' % (b"x" * 50_001), "too_long", "the text is too long"),
    (b'{"text": "x", "seed": -1}', "bad_setting", "seed: got -1"),
    (b'{"text": "x", "seed": 1.5}', "bad_setting", "seed is of the wrong type"),
    (b'{"text": "x", "seed": true}', "bad_setting", "seed is of the wrong type"),
    (b'{"text": "x", "max_sec": 0}', "bad_setting", "max_sec: got 0"),
    (b'{"text": "x", "max_sec": NaN}', "bad_setting", "max_sec: got nan"),
    (b'{"text": "x", "max_sec": 1e999}', "bad_setting", "max_sec: got inf"),
    (b'{"text": "x", "max_sec": 1%s}' % (b"0" * 400), "bad_setting", "max_sec: got inf"),
    (
        b'{"text": "x", "max_sec": 1e300}',
        "bad_setting",
        "max_sec: got 1e+300, expected a number above 0, at most 86400",
    ),
    (b'{"text": "x", "temperature": 1e-40}', "bad_setting", "temperature: got 1e-40, expected 0, or 1e-06 to 1e+06"),
    (b'{"text": "x", "temperature": 1e39}', "bad_setting", "temperature: got 1e+39"),
    (b'{"text": "x", "text_temperature": 1e-40}', "bad_setting", "temperature: got 1e-40"),
    (b'{"text": "x", "top_p": 1e-50}', "bad_setting", "top_p: got 1e-50"),
    (b'{"text": "x", "repetition_penalty": 1e-44}', "bad_setting", "repetition_penalty: got 1e-44"),
    (b'{"text": "x", "seed": 18446744073709551616}', "bad_setting", "seed: got 18446744073709551616"),
    (b'{"text": "x", "seed": 1%s}' % (b"0" * 4000), "bad_setting", "seed: got 1000000"),
    (b'{"text": "x", "top_p": "all"}', "bad_setting", "top_p is of the wrong type"),
    (b'{"text": "x", "top_p": 0}', "bad_setting", "top_p: got 0"),
    (b'{"text": "x", "text_temperature": -1}', "bad_setting", "temperature: got -1"),
    (b'{"text": "x", "speaker": 5}', "bad_setting", "speaker is of the wrong type"),
]


def read_items(path: Path, task: SpeakingTask) -> Listed:
    return item_lines.read_items(path, task, DEFAULTS, speaker="voice.wav")


@pytest.mark.parametrize(("line", "reason", "detail"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_a_bad_line_is_a_failure_and_the_next_line_an_item(
    line: bytes, reason: str, detail: str, tmp_path: Path
) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_bytes(line + b'\n\n{"text": "good"}')
    items, (failure,) = read_items(path, "tts")
    assert items == [SpeechItem("000003", "good", "voice.wav", DEFAULTS)]
    assert failure.reason == reason
    assert detail in failure.detail
    assert len(failure.detail) < 500
    assert failure.key in ("line 1", "000001", "a")
    assert json.loads(failure.line())["reason"] == reason


def test_a_line_says_what_it_wants_otherwise(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    own = {"id": 7, "question": "Who? 🎉 \ud800", "speaker": "C:k", "seed": 9, "max_sec": 2, "top_k": 4}
    own |= {"text_temperature": 0, "watch": False}
    lines = [own, {"question": "Where?"}, {"question": "x", "id": "7"}, {"question": "x", "id": "000002"}]
    path.write_text("\ufeff" + "\n".join(json.dumps(line) for line in lines), encoding="utf-8")
    (first, second), failures = read_items(path, "qa")
    assert (first.id, first.text, first.speaker, second.id) == ("7", own["question"], "C:k", "000002")
    changed = {"top_k": 4, "text_temperature": 0.0, "max_sec": 2.0, "seed": 9, "watch": False}
    assert first.settings == dataclasses.replace(DEFAULTS, **changed)
    assert first.settings.sampling == Sampling(temperature=0.5, top_k=4)
    assert first.settings.text_sampling == Sampling(top_k=4)
    assert (second.speaker, second.settings) == ("voice.wav", DEFAULTS)
    assert DEFAULTS.text_sampling == DEFAULTS.sampling
    assert [(failure.key, failure.reason) for failure in failures] == [
        ("7", "duplicate_id"),
        ("000002", "duplicate_id"),
    ]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=4,
)
FIELDS = ["text", "id", "speaker", *(field.name for field in dataclasses.fields(SpeakingSettings))]


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES))
def test_any_line_is_an_item_or_a_failure(values: dict) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write((json.dumps({"text": "x", **values}) + '\n{"text": "good", "id": "last"}').encode())
        file.flush()
        items, failures = read_items(Path(file.name), "tts")
    assert len(items) + len(failures) == 2
    assert items[-1].id == "last"
    for failure in failures:
        assert len(failure.line()) < 1000


def test_the_digest_is_of_all_that_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    lines = [{"text": "a"}, {"text": "a"}, {"text": "b"}, {"text": "a", "seed": 4}, {"text": "a", "speaker": "other"}]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    digests = [item.digest for item in read_items(path, "tts").items]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4


@pytest.mark.parametrize("extra", [0, 1, 50])
def test_a_line_at_the_limit_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: int
) -> None:
    long = json.dumps({"text": "x" * 20})
    monkeypatch.setattr(item_lines, "MAX_ITEM_BYTES", len(long))
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join([long + " " * extra, '{"text": "a"}', long]))
    listed = read_items(path, "tts")
    assert [failure.reason for failure in listed.failures] == ["too_long"] * (extra > 0)
    assert [item.id for item in listed.items] == ["000001", "000002", "000003"][extra > 0 :]


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*missing"):
        read_items(tmp_path / "missing", "tts")
    with pytest.raises(UserError, match="cannot read"):
        read_items(tmp_path, "tts")
    (tmp_path / "empty").write_text("\n \n")
    with pytest.raises(UserError, match="holds no line"):
        read_items(tmp_path / "empty", "tts")
