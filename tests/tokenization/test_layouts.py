"""Spoken utterances in every layout through the whole job: what goes in comes out or is in the ledger,
and however the job is cut up, its shards are the same."""

import json
from collections import Counter

import pytest
from raw_corpora import WRITERS, utterances
from tokenization.hostile import hashes, ledger

from slmkit.codec.open import open_codec
from slmkit.config.load import from_dict
from slmkit.config.tokenize import TokenizeConfig
from slmkit.data.index import Corpus
from slmkit.tokenization.job import encode_share, finalize_corpus, plan_corpus, tokenize

COUNT = 60
FEW = ("libritts", "emilia", "parquet", "segments")  # of the default run


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    root, spoken = tmp_path_factory.mktemp("corpora"), utterances(COUNT)
    return {layout: write(root / layout, spoken) for layout, write in WRITERS.items()}


def make_config(expected, codec, out, **changes):
    values = {
        **expected.settings,
        "corpus": "spoken",
        "kind": expected.kind,
        "source": expected.source,
        "codec": str(codec),
        "out": str(out),
        "language": "en",
        "num_workers": 0,
        "shard_samples": 16,
    }
    return from_dict(TokenizeConfig, values | changes)


@pytest.mark.parametrize(
    "layout", [name if name in FEW else pytest.param(name, marks=pytest.mark.full) for name in WRITERS]
)
def test_what_goes_in_comes_out_or_is_in_the_ledger(layout, corpora, codec_path, tmp_path):
    expected = corpora[layout]
    assert expected.items >= COUNT // 10 if layout == "segments" else expected.items >= COUNT
    tokenize(open_codec(codec_path), make_config(expected, codec_path, tmp_path / "out"))
    counts = json.loads((tmp_path / "out/manifest.json").read_text())["counts"]
    assert (counts["utterances"], counts["samples"]) == (expected.items, expected.good)
    lines = ledger(tmp_path / "out")
    assert Counter(line["reason"] for line in lines) == expected.reasons
    corpus = Corpus.open(tmp_path / "out")
    keys = [corpus.key(i) for i in range(len(corpus))]
    assert (len(set(keys)), len(keys)) == (expected.good, expected.good)


@pytest.fixture(scope="module")
def reference(corpora, codec_path, tmp_path_factory):
    out = tmp_path_factory.mktemp("reference") / "out"
    tokenize(open_codec(codec_path), make_config(corpora["emilia"], codec_path, out))
    return hashes(out)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"num_workers": 1}, marks=pytest.mark.full, id="1 worker"),
        pytest.param({"num_workers": 4}, marks=pytest.mark.full, id="4 workers"),
        pytest.param({"batch_sec": 0.01}, id="batches of one"),
        pytest.param({"window": 3, "num_workers": 2}, id="a small window"),
    ],
)
def test_workers_and_batches_change_no_byte(changes, corpora, codec_path, reference, tmp_path):
    tokenize(open_codec(codec_path), make_config(corpora["emilia"], codec_path, tmp_path / "out", **changes))
    assert hashes(tmp_path / "out") == reference


def test_tasks_in_any_order_and_number_change_no_byte(corpora, codec_path, reference, tmp_path):
    codec = open_codec(codec_path)
    plan_corpus(codec.spec, make_config(corpora["emilia"], codec_path, tmp_path / "out"))
    for task, num_tasks in ((7, 8), (2, 3), (0, 5), (1, 2), (0, 2)):
        changes = {"task": task, "num_tasks": num_tasks}
        encode_share(codec, make_config(corpora["emilia"], codec_path, tmp_path / "out", **changes))
    finalize_corpus(tmp_path / "out", 0.5)
    assert hashes(tmp_path / "out") == reference
