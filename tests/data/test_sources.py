"""Text dialogues: the published format, lines that cannot be used, and files that change."""

import hashlib
import json
import pickle

import pytest

from slmkit.data import sources as module
from slmkit.data.prompt import conversation, example
from slmkit.data.sources import Conversations
from slmkit.errors import BadSample, DamagedSample, UserError


def line(*values, names=("human", "gpt")):
    said = [{"from": names[i % 2], "value": value} for i, value in enumerate(values)]
    return json.dumps({"id": "x", "conversations": said}, ensure_ascii=False).encode()


GOOD = [line("Who wrote it?", "Nobody knows."), line("é", "ü", "b", "c", names=("user", "assistant"))]
BAD = {
    b"{": "malformed",
    b"\xff": "malformed",
    b"[1]": "malformed",
    b"[" * 100_000: "malformed",
    b"{}": "no_turns",
    b'{"conversations": []}': "no_turns",
    b'{"conversations": ["a", "b"]}': "bad_turns",
    line("a"): "bad_turns",
    line("a", "b", "c"): "bad_turns",
    line("a", "b", names=("gpt", "human")): "bad_turns",
    line("a", " "): "empty_turn",
    line("", "b"): "empty_turn",
}


def test_dialogues_are_read_in_the_order_of_the_file(tmp_path):
    path = tmp_path / "talk.jsonl"
    content = GOOD[0] + b"\r\n\n  \n" + GOOD[1]
    path.write_bytes(content)
    texts = pickle.loads(pickle.dumps(Conversations.open(path)))
    assert (len(texts), texts.counts) == (2, {})
    assert texts.fingerprint == hashlib.sha256(content).hexdigest()
    assert [texts.key(i) for i in range(2)] == ["talk:1", "talk:4"]
    sample = texts.read(1)
    assert (sample.key, sample.codes.shape, sample.speaker) == ("talk:4", (0, 0), None)
    assert sample.meta == texts.read_meta(1) == {"turns": [["é", "ü"], ["b", "c"]]}
    assert example("text", sample.meta, speaker=False) == conversation([("é", "ü"), ("b", "c")])


def test_lines_that_cannot_be_used_are_left_out_and_counted(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_bytes(b"\n".join([GOOD[0], *BAD, GOOD[1], b""]))
    texts = Conversations.open(path)
    assert [texts.key(i) for i in range(len(texts))] == ["talk:1", f"talk:{len(BAD) + 2}"]
    assert texts.read_meta(1)["turns"][0] == ["é", "ü"]
    assert texts.counts == {"bad_turns": 4, "empty_turn": 2, "malformed": 4, "no_turns": 2}
    for bad, reason in BAD.items():
        with pytest.raises(BadSample) as caught:
            module._turns(bad)
        assert caught.value.reason == reason
    with pytest.raises(BadSample, match=r"part 1 is not text from human or user\n  got: .*'from': 'gpt'"):
        module._turns(list(BAD)[9])


def test_a_line_that_is_too_long_is_left_out_and_the_next_one_found(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "MAX_LINE_BYTES", 200)
    path = tmp_path / "talk.jsonl"
    path.write_bytes(b"\n".join([GOOD[0], line("a", "b" * 1000), GOOD[1]]))
    texts = Conversations.open(path)
    assert [texts.key(i) for i in range(len(texts))] == ["talk:1", "talk:3"]
    assert texts.read_meta(1)["turns"][1] == ["b", "c"]
    assert texts.counts == {"malformed": 1}


def test_a_line_that_changes_after_opening_is_named_with_its_file(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_bytes(b"\n".join(GOOD))
    texts = Conversations.open(path)
    path.write_bytes(b"\n".join(GOOD).replace(b'"b"', b'"d"'))
    assert texts.read_meta(0)["turns"] == [["Who wrote it?", "Nobody knows."]]
    with pytest.raises(DamagedSample, match=r"talk\.jsonl, line 2, cannot be read: its bytes have changed") as caught:
        texts.read(1)
    assert (caught.value.key, caught.value.path) == ("talk:2", str(path))
    assert texts.fingerprint in str(caught.value)
    path.unlink()
    with pytest.raises(DamagedSample, match=r"line 1, cannot be read: No such file"):
        texts.read(0)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*none\.jsonl: No such file"):
        Conversations.open(tmp_path / "none.jsonl")
