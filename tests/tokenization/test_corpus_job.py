"""The directory of a job, and importing published codes."""

import json
import os

import pytest
from tiny_codec import SPEC
from tokenization.hostile import hashes, ledger

from slmkit.config.load import from_dict
from slmkit.config.tokenize import ImportConfig
from slmkit.data.index import Corpus
from slmkit.data.ledger import Failure
from slmkit.data.shards import ShardReader
from slmkit.errors import UserError
from slmkit.tokenization.corpus_job import CorpusJob
from slmkit.tokenization.job import import_codes


def test_what_a_run_killed_at_its_very_start_leaves_does_no_harm(tmp_path):
    (tmp_path / ".job.json.7.part").write_text("{")
    CorpusJob(tmp_path, "c", SPEC, {})
    assert json.loads((tmp_path / "job.json").read_text())["codec"]["name"] == "tiny"


def test_the_next_start_removes_what_a_killed_one_left(tmp_path):
    CorpusJob(tmp_path, "c", SPEC, {})
    (tmp_path / "tasks").mkdir()
    left = [tmp_path / ".c-000000.tar.51cdeb68.part", tmp_path / "tasks" / ".0-of-1.json.51cdeb68.part"]
    for path in left:
        path.write_text("half")
        os.utime(path, (0, 0))
    CorpusJob(tmp_path, "c", SPEC, {})
    assert [path for path in left if path.exists()] == []


def test_a_job_is_opened_as_it_was_begun(tmp_path):
    begun = CorpusJob(tmp_path / "out", "c", SPEC, {"corpus": "c", "min_sec": 0.5})
    job = CorpusJob.open(tmp_path / "out")
    assert (job.name, job.codec, job.settings) == ("c", SPEC, begun.settings)
    assert job.made_by()["config"] == begun.settings
    with pytest.raises(UserError, match=r"holds no job: job\.json is missing"):
        CorpusJob.open(tmp_path)
    good = json.loads((tmp_path / "out/job.json").read_text())
    for content in (
        *("[]", '{"codec": {}, "settings": {}}', '{"codec": 3, "settings": {"corpus": "c"}}'),
        *(json.dumps({**good, "settings": [["corpus", "c"]]}), json.dumps({**good, "settings": {"corpus": "../c"}})),
        *(json.dumps({**good, "settings": {"corpus": 3}}), json.dumps({**good, "made_by": 3})),
    ):
        (tmp_path / "out/job.json").write_text(content)
        with pytest.raises(UserError, match="is not the file of a job"):
            CorpusJob.open(tmp_path / "out")
    (tmp_path / "out/job.json").write_text(json.dumps({**good, "made_by": 3}))
    with pytest.raises(UserError, match="it does not say what made it"):
        CorpusJob(tmp_path / "out", "c", SPEC, begun.settings).made_by()


def test_a_shard_may_hold_failures_alone(tmp_path):
    job = CorpusJob(tmp_path / "out", "c", SPEC, {})
    assert not job.is_done(3)
    assert len(job.write(3, [Failure("0", "empty", ""), Failure("1", "empty", "")])) == 0
    assert job.is_done(3)


def make_published(path):
    lines = [
        {"uttid": "ntp 1", "text": "One.", "tokens": "<a1><b2><c3><a4><b5><c6>"},
        {"uttid": "bad", "text": "Two.", "tokens": "<a1><b2>"},
        {"uttid": "mtp", "text": "Three.", "tokens": {"head_a_1": "<a7>", "head_b_1": "<b8>", "head_c_1": "<c1023>"}},
        {"uttid": "mtp", "text": "Again.", "tokens": "<a1><b2><c3>"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


def test_published_codes_become_a_corpus(tmp_path):
    source = make_published(tmp_path / "x.jsonl")
    values = {"corpus": "demo", "source": [str(source)], "shard_samples": 3, "max_failure_share": 0.5}
    for name in ("a", "b"):
        import_codes(from_dict(ImportConfig, {**values, "out": str(tmp_path / name)}))
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    corpus = Corpus.open(tmp_path / "a")
    samples = [ShardReader(corpus).read(i) for i in range(len(corpus))]
    assert [(sample.key, sample.codes.tolist(), sample.speaker) for sample in samples] == [
        ("ntp 1", [[1, 4], [2, 5], [3, 6]], None),
        ("mtp", [[7], [8], [1023]], None),
    ]
    assert [(line["key"], line["reason"]) for line in ledger(tmp_path / "a")] == [
        ("bad", "bad_tokens"),
        ("mtp", "duplicate_key"),
    ]
    assert (corpus.codec.name, corpus.codec.weights_sha256, corpus.codec.speaker_dim) == ("facodec", "", 0)
    assert [stream.name for stream in corpus.codec.lm_streams] == ["content_1", "content_2", "prosody"]


def test_published_codes_that_changed_since_are_noticed(tmp_path):
    source = make_published(tmp_path / "x.jsonl")
    values = {"corpus": "demo", "source": [str(source)], "shard_samples": 3, "max_failure_share": 0.5}
    config = from_dict(ImportConfig, {**values, "out": str(tmp_path / "a")})
    import_codes(config)
    source.write_text("\n".join(source.read_text().splitlines()[1:]))
    with pytest.raises(UserError, match=r"demo-000000\.index\.json: the source has changed since"):
        import_codes(config)
    source.write_text("")
    with pytest.raises(UserError, match=r"holds shards that were not planned[\s\S]*2 shards"):
        import_codes(config)
