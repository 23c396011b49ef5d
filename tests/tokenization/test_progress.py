"""Progress of a job: what its tasks report, and what is made of it."""

import json
import os

import pytest
from tiny_codec import SPEC

from slmkit.corpora.base import Audio, Utterance
from slmkit.tokenization import progress
from slmkit.tokenization.corpus_job import CorpusJob
from slmkit.tokenization.plan import make_plan
from slmkit.tokenization.progress import Report, look
from slmkit.tokenization.sift import Rules, sift_parts


def begin(out, seconds=10.0, shards=10):
    job = CorpusJob(out, "c", SPEC, {"corpus": "c"})
    items = [Utterance(f"u{i}", Audio("a"), "x", "s", seconds=seconds) for i in range(shards)]
    return job, make_plan(out, sift_parts([lambda: items], Rules(), num_workers=0), shard_samples=1)


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_time_left_follows_the_rate_of_what_runs(tmp_path):
    job, plan = begin(tmp_path)
    for shard in (0, 1, 4, 5):
        job.write(shard, [])
    for task, state in ((0, "running"), (1, "running"), (2, "failed")):
        report = Report(tmp_path, task=task, num_tasks=3, shards=3)
        if state == "failed":
            report.end("failed", "disk full\n  next: free it")
        edit(tmp_path / f"tasks/{task}-of-3.json", started=100.0, updated=110.0, seconds_done=10.0 + 10.0 * task)
    status = look(job, plan, now=115.0)
    assert (status.num_shards, status.missing) == (10, [2, 3, 6, 7, 8, 9])
    assert status.seconds_left == 60.0
    assert status.time_left_sec == pytest.approx(60 / (1 + 2))
    assert [(task.name, task.state) for task in status.tasks] == [
        ("0-of-3", "running"),
        ("1-of-3", "running"),
        ("2-of-3", "failed"),
    ]
    text = "\n".join(status.lines())
    for part in (
        "4 of 10 done",
        "2 running, 1 failed, 0 lost",
        "shard 2 to 3, 6 to 9",
        "left: 20 s",
        "failed: disk full",
    ):
        assert part in text
    assert "free it" not in text


def test_a_silent_task_is_lost_and_a_file_that_is_none_is_passed_over(tmp_path):
    job, plan = begin(tmp_path, seconds=None)
    Report(tmp_path, task=0, num_tasks=2, shards=5)
    edit(tmp_path / "tasks/0-of-2.json", started=100.0, updated=200.0, shards_done=50)
    for name, content in (("1-of-2", "{"), ("2-of-2", "[]"), ("3-of-2", '{"state": "running"}')):
        (tmp_path / f"tasks/{name}.json").write_text(content)
    assert look(job, plan, now=200.0).time_left_sec == pytest.approx(10 / 0.5)  # by shards: no durations are known
    status = look(job, plan, now=201.0 + progress.LOST_SEC)
    assert [task.state for task in status.tasks] == ["lost"]
    assert status.time_left_sec is None
    assert "not known yet" in "\n".join(status.lines())
    assert "start it again" in status.lines()[-1]


def test_a_task_reports_what_it_has_done(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_SEC", 0.0)
    report = Report(tmp_path, task=3, num_tasks=4, shards=2)
    report.add(1.5)
    report.add(2.0)
    report.shard_done()
    values = json.loads((tmp_path / "tasks/3-of-4.json").read_text())
    assert (values["seconds_done"], values["shards_left"], values["state"]) == (3.5, 1, "running")
    assert values["process"] == os.getpid()
    report.end("stopped")
    assert json.loads((tmp_path / "tasks/3-of-4.json").read_text())["state"] == "stopped"
