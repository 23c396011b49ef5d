"""Tables of lengths: right, stored once per what they depend on, and honest about what could not be read."""

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
from synthetic import codec_spec, write_corpus

from slmkit.data import lengths, prompt
from slmkit.data.index import Corpus
from slmkit.data.lengths import RECORD, UNREADABLE, Wording, open_table
from slmkit.data.sources import Source, of_corpus
from slmkit.data.text import TextTokenizer
from slmkit.errors import DamagedSample, UserError
from slmkit.model.pretrained import base_layout

BASE = Path(__file__).resolve().parent.parent / "golden" / "slm" / "tiny_base"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), 25)


@pytest.fixture(scope="module")
def wording() -> Wording:
    tokenizer = TextTokenizer.load(BASE)
    return Wording(task="tts", speaker=True, tokenizer=tokenizer, layout=base_layout(tokenizer, codec_spec(), 3))


def test_it_holds_what_the_examples_are(corpus: Corpus, wording: Wording, tmp_path: Path) -> None:
    source = of_corpus(corpus)
    table = open_table(source, wording, directory=tmp_path)
    assert isinstance(table, np.memmap)
    assert (table == open_table(source, wording, directory=None)).all()
    assert table["frames"].tolist() == [frames for shard in corpus.shards for frames in shard.frames]
    assert set(table["speech"]) == set(table["labelled"]) == {1}
    for i in (0, 13, 24):
        pieces = wording.pieces(source, corpus.key(i), source.reader.read_meta(i))
        assert table["text_positions"][i] == sum(len(piece.ids) for piece in pieces)
        assert table["key_hash"][i] == lengths.key_hash(corpus.key(i))
        assert table["speaker_hash"][i] == lengths.speaker_hash("s") != lengths.speaker_hash("")


def test_one_for_all_it_depends_on(corpus: Corpus, wording: Wording, tmp_path: Path) -> None:
    source = of_corpus(corpus)
    first = open_table(source, wording, directory=tmp_path)
    (cached,) = tmp_path.iterdir()
    made = cached.stat().st_ino
    assert (open_table(source, wording, directory=tmp_path) == first).all()
    assert cached.stat().st_ino == made
    open_table(source, dataclasses.replace(wording, speaker=False), directory=tmp_path)
    open_table(source, dataclasses.replace(wording, task="asr"), directory=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("task", ["tts", "asr", "qa", "text"])
@pytest.mark.parametrize("speaker", [True, False])
def test_a_changed_prompt_has_a_table_of_its_own(
    wording: Wording, task: str, speaker: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wording = dataclasses.replace(wording, task=task, speaker=speaker)
    before, named = wording.fingerprint, prompt.prompt_sha256(task, speaker=speaker)
    assert (wording.fingerprint, prompt.prompt_sha256(task, speaker=speaker)) == (before, named)
    used = {"text": "turn", "asr": "asr"}.get(task, f"{task}_speaker" if speaker else task)
    for name, template in prompt.TEMPLATES.items():
        with monkeypatch.context() as changed:
            changed.setitem(prompt.TEMPLATES, name, template.replace("[Assistant]:", "Then [Assistant]:"))
            assert (wording.fingerprint != before) == (prompt.prompt_sha256(task, speaker=speaker) != named)
            assert (wording.fingerprint != before) == (name == used)
    if task != "text":
        with monkeypatch.context() as changed:
            changed.setattr(prompt, "normalize_text", str.strip)
            assert wording.fingerprint != before


NESTED = b"\x93NUMPY\x01\x00\x76\x00" + (b"{'descr': " + b"[" * 107).ljust(117) + b"\n"  # no expression of Python


@pytest.mark.parametrize("content", [b"damaged", b"", NESTED, None])
def test_a_damaged_one_is_made_again(corpus: Corpus, wording: Wording, tmp_path: Path, content: bytes | None) -> None:
    expected = np.array(open_table(of_corpus(corpus), wording, directory=tmp_path))
    (cached,) = tmp_path.iterdir()
    cached.write_bytes(cached.read_bytes()[:-5] if content is None else content)
    assert (open_table(of_corpus(corpus), wording, directory=tmp_path) == expected).all()


@pytest.mark.full
def test_several_processes_build_the_same(
    corpus: Corpus, wording: Wording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = open_table(of_corpus(corpus), wording, directory=tmp_path / "one")
    monkeypatch.setattr(lengths, "SAMPLES_PER_WORKER", 10)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    started = []
    pool = lengths.ProcessPoolExecutor
    monkeypatch.setattr(lengths, "ProcessPoolExecutor", lambda n, **rest: started.append(n) or pool(n, **rest))
    two = open_table(of_corpus(corpus), wording, directory=tmp_path / "two")
    assert started == [2]
    assert (one == two).all()


def damaged(corpus: Corpus) -> Source:
    """The corpus with a reader that one sample is lost to."""

    class Reader:
        def read_meta(self, i: int) -> dict[str, str]:
            if i == 7:
                raise DamagedSample("utterance-0007", "a.tar", "a.tar: sample 'utterance-0007' cannot be read")
            return {"text": "good"}

    return dataclasses.replace(of_corpus(corpus), reader=Reader())


def test_a_sample_that_cannot_be_read_stops_or_is_marked(corpus: Corpus, wording: Wording, tmp_path: Path) -> None:
    with pytest.raises(DamagedSample, match="'utterance-0007' cannot be read"):
        open_table(damaged(corpus), wording, directory=tmp_path)
    assert list(tmp_path.iterdir()) == []
    marked = open_table(damaged(corpus), wording, directory=tmp_path, skip_damaged=True)
    assert np.flatnonzero(marked["text_positions"] == UNREADABLE).tolist() == [7]
    with pytest.raises(DamagedSample):
        open_table(damaged(corpus), wording, directory=tmp_path)


def test_a_whole_table_serves_both(corpus: Corpus, wording: Wording, tmp_path: Path) -> None:
    open_table(of_corpus(corpus), wording, directory=tmp_path, skip_damaged=True)
    (cached,) = tmp_path.iterdir()
    assert "skipping" not in cached.name
    assert not (open_table(damaged(corpus), wording, directory=tmp_path)["text_positions"] == UNREADABLE).any()


def test_a_sample_that_does_not_fit_the_task_is_named(corpus: Corpus, wording: Wording) -> None:
    with pytest.raises(DamagedSample, match="sample 'k'") as caught:
        wording.pieces(of_corpus(corpus), "k", {"turns": []})
    assert caught.value.key == "k"


def test_a_table_that_cannot_be_mapped_is_an_error(
    corpus: Corpus, wording: Wording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lengths, "_read", lambda path, num_samples: None)
    with pytest.raises(UserError, match="cannot be read back"):
        open_table(of_corpus(corpus), wording, directory=tmp_path)


def test_a_record_is_small() -> None:
    """40 million samples in 1.4 gigabytes of file."""
    assert RECORD.itemsize == 34


@pytest.mark.full
def test_a_process_that_dies_is_named(
    corpus: Corpus, wording: Wording, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lengths, "SAMPLES_PER_WORKER", 10)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr(lengths, "_in_worker", os._exit)
    with pytest.raises(UserError, match="a process that reads the lengths of the examples died"):
        open_table(of_corpus(corpus), wording, directory=tmp_path)
    assert list(tmp_path.iterdir()) == []
