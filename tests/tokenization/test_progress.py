"""Progress of a job: what its tasks report, and what is made of it."""

import io
import json
import os
import re
import sys

import pytest
from tiny_codec import SPEC

from slmkit import log
from slmkit.corpora.base import Audio, Utterance
from slmkit.errors import UserError
from slmkit.jobs import ProgressBar
from slmkit.log import table
from slmkit.stopping import Stopped
from slmkit.tokenization import progress
from slmkit.tokenization.corpus_job import CorpusJob
from slmkit.tokenization.plan import Rules, make_plan, sift_parts
from slmkit.tokenization.progress import Done, Progress, look


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
        task_progress = Progress(tmp_path, plan, [6, 7, 8], task=task, num_tasks=3)
        if state == "failed":
            with pytest.raises(UserError), task_progress:
                raise UserError("disk full", next_step="free it")
        else:
            task_progress.__enter__()
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
    text = "\n".join(table(status.rows()))
    for part in (
        "4 of 10 done",
        "2 running, 1 failed, 0 lost",
        "shard 2 to 3, 6 to 9",
        "time left    20 s",
        "failed: disk full",
    ):
        assert part in text
    assert "free it" not in text


def test_a_silent_task_is_lost_and_a_file_that_is_none_is_passed_over(tmp_path):
    job, plan = begin(tmp_path, seconds=None)
    Progress(tmp_path, plan, [5], task=0, num_tasks=2).__enter__()
    edit(tmp_path / "tasks/0-of-2.json", started=100.0, updated=200.0, shards_done=50)
    for name, content in (("1-of-2", "{"), ("2-of-2", "[]"), ("3-of-2", '{"state": "running"}')):
        (tmp_path / f"tasks/{name}.json").write_text(content)
    assert look(job, plan, now=200.0).time_left_sec == pytest.approx(10 / 0.5)  # by shards: no durations are known
    status = look(job, plan, now=201.0 + progress.LOST_SEC)
    assert [task.state for task in status.tasks] == ["lost"]
    assert progress.done_by(tmp_path, {os.getpid()}) is None
    assert status.time_left_sec is None
    assert ("time left", "unknown") in status.rows()
    assert "start it again" in status.rows()[-2][1]
    assert json.loads(json.dumps(status.to_dict()))["tasks"][0]["state"] == "lost"


def test_a_task_that_failed_is_told_of_while_a_shard_of_it_is_missing(tmp_path):
    job, plan = begin(tmp_path, shards=3)
    for task, num_tasks in ((0, 1), (1, 2)):
        with pytest.raises(UserError), Progress(tmp_path, plan, [0], task=task, num_tasks=num_tasks):
            raise UserError("disk full")
    for shard, named in ((0, ["0-of-1", "1-of-2"]), (1, ["0-of-1"]), (2, [])):
        job.write(shard, [])
        status = look(job, plan)
        assert [task.name for task in status.tasks] == named
    assert ("tasks", "0 running, 0 failed, 0 lost") in status.rows()


def test_a_task_reports_what_it_has_done(tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "EVERY_SEC", 0.0)
    _, plan = begin(tmp_path)
    with pytest.raises(KeyboardInterrupt), Progress(tmp_path, plan, [3, 7], task=3, num_tasks=4) as task:
        task.advance(2, 1.5)
        task.advance(1, 2.0)
        task.shard_done()
        values = json.loads((tmp_path / "tasks/3-of-4.json").read_text())
        assert (values["items"], values["items_done"], values["seconds"], values["seconds_done"]) == (2, 3, 20.0, 3.5)
        assert (values["shards_left"], values["state"], values["process"]) == (1, "running", os.getpid())
        raise KeyboardInterrupt
    assert json.loads((tmp_path / "tasks/3-of-4.json").read_text())["state"] == "stopped"


def test_figures_of_what_is_done():
    known = Done(items=3, num_items=12, seconds=3600.0, num_seconds=14400.0, elapsed_sec=60.0)
    assert known.figures == "1.0 of 4.0 h audio, 60x real time"
    assert known._replace(num_seconds=None).figures == "1.0 of about 4.0 h audio, 60x real time"
    assert known._replace(seconds=60.0, num_seconds=90.0).figures == "1.0 of 1.5 min audio, 1x real time"
    assert "starting" in Done(0, 10, 0.0, None, 0.0).figures


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_and_the_log_never_share_a_line(tmp_path, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    log.set_up()
    logger = log.get_logger("slmkit.tokenization")
    _, plan = begin(tmp_path)
    with ProgressBar(2, "utterances", logger) as bar, Progress(tmp_path, plan, [3, 7], bar=bar) as task:
        task.advance(1, 10.0)
        logger.info("a shard")
        task.advance(1, 10.0)
    lines = [line.rpartition("\r")[2].strip() for line in terminal.getvalue().split("\n")]  # what is left of each
    assert lines[0].endswith("I a shard")
    assert "%|" not in lines[0]
    assert lines[1].startswith("100%|")
    assert re.search(r"2/2 \[00:00<00:00, 0\.3 of 0\.3 min audio, [0-9.e+]+x real time\]$", lines[1])


def test_a_stop_while_the_state_is_written_is_told(tmp_path, monkeypatch):
    """At the beginning, before the work, and at the end, behind it."""
    _, plan = begin(tmp_path)
    for times, state in ((0, "stopped"), (1, "done")):
        written = []

        def write(path, values, *, times=times, written=written, **options):
            written.append(values["state"])
            if len(written) == times + 1:
                raise Stopped("SIGTERM")

        monkeypatch.setattr(progress, "write_json", write)
        with pytest.raises(Stopped), Progress(tmp_path, plan, [3], task=0, num_tasks=1):
            pass
        assert written[-1] == state
