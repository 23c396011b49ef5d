"""Sifting: the same chunks for any number of processes, errors of the processes reach the user."""

import json
import os
from functools import partial

import pytest
from raw_corpora import read_source

from slmkit.corpora.layouts import ReadOptions
from slmkit.corpora.manifest import manifest_parts
from slmkit.data import lines
from slmkit.errors import UserError
from slmkit.tokenization.plan import Rules, sift_parts


def manifest(path, count=300):
    """A manifest whose lines are good, short, malformed, blank and equal to others."""
    lines = []
    for i in range(count):
        line = {"path": f"{i % 250}.wav", "text": f"Number {i} é", "seconds": i % 7}
        lines.append("" if i % 50 == 49 else "{" if i % 31 == 30 else json.dumps(line, ensure_ascii=False))
    path.write_text("\n".join(lines))
    return path


@pytest.mark.parametrize("block_bytes", [1, 100, 2000])
@pytest.mark.parametrize("suffix", [".jsonl", ".tsv"])
def test_parts_of_a_manifest_are_the_manifest(tmp_path, monkeypatch, block_bytes, suffix):
    path = manifest(tmp_path / "m.jsonl")
    if suffix == ".tsv":
        path = tmp_path / "m.tsv"
        rows = [f"{i}.wav\tNumber {i}" if i % 7 else f"{i}.wav" for i in range(300)]
        path.write_text("\n\n" + "\r\n".join(["path\ttext", *rows]) + "\n")
    whole = read_source("manifest", path)
    monkeypatch.setattr(lines, "BLOCK_BYTES", block_bytes)
    parts = [list(part()) for part in manifest_parts(path, ReadOptions())]
    assert [item for part in parts for item in part] == whole
    assert len(parts) > 2
    assert len(whole) == (294 if suffix == ".jsonl" else 300)


def test_any_number_of_processes_gives_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1000)
    path = manifest(tmp_path / "m.jsonl")
    rules = Rules(min_sec=2.0)
    results = []
    for num_workers in (0, 2, 3):
        chunks = list(sift_parts(manifest_parts(path, ReadOptions()), rules, num_workers=num_workers))
        results.append([row for chunk in chunks for row in zip(*chunk, strict=True)])
    assert results[0] == results[1] == results[2]
    assert len(results[0]) == 294
    assert {refusal.reason for *_, refusal in results[0] if refusal} == {"malformed", "too_short"}


def _raise():
    raise UserError("the third part is damaged", got="nothing")


def test_errors_of_processes_reach_the_user():
    empty = partial(iter, ())
    with pytest.raises(UserError, match=r"the third part is damaged\n  got:      nothing"):
        list(sift_parts([empty, empty, _raise], Rules(), num_workers=2))
    with pytest.raises(UserError, match="a process that reads the source died"):
        list(sift_parts([empty, partial(os._exit, 9), empty], Rules(), num_workers=2))
