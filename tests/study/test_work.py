"""Steps are done once, in order, whatever is killed, stopped or fails. A small program stands in for `slmkit`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from slmkit.cli.main import main
from slmkit.config.load import from_dict
from slmkit.errors import UserError
from slmkit.study import local
from slmkit.study.config import StudyConfig
from slmkit.study.local import run_study
from slmkit.study.plan import StudyPlan, plan_study
from slmkit.study.work import Work, look, paths, take

# Makes the directory that its words name, and writes a line for each start. What is to go wrong lies in files: exit
# codes or signals of a step's starts, one a line, of which each start takes the first.
STAND_IN = """
import os, signal, sys, time
words = sys.argv[1:]
value = {w.split("=", 1)[0]: w.split("=", 1)[1] for w in words if "=" in w}
out = value.get("run_dir") or (words[words.index("--out") + 1] if "--out" in words else None)
out = out or {"codec": words[3:4], "tokenize": words[4:5], "init-base": words[1:2]}.get(words[0], words[2:3])[0]
root, name = os.environ["ROOT"], out.split("/OUT/")[1].replace("/", "-")
with open(f"{root}/journal", "a") as journal:
    journal.write(name + "\\n")
plan = f"{root}/{name}.wrong"
wrong = open(plan).read().split() if os.path.exists(plan) else []
if wrong:
    with open(plan, "w") as file:
        file.write(" ".join(wrong[1:]))
    if wrong[0] == "hang":
        signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
        open(f"{root}/hangs", "w").close()
        time.sleep(60)
    print("what it said last")
    sys.stdout.flush()
    if wrong[0] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(int(wrong[0]))
os.makedirs(out, exist_ok="--replace" in words or words[0] in ("tokenize", "train", "evaluate"))
"""


class Place(NamedTuple):
    """A study of two codecs, a next-token model of each, in a directory of its own."""

    root: Path
    program: tuple[str, ...]

    def plan(self, **changes: Any) -> StudyPlan:
        values = {
            "out": str(self.root / "OUT"),
            "corpora": {"c": {"source": "audio"}},
            "codecs": {"a": {"add": "ORG/A"}, "b": {"fit": "audio"}},
            "bases": {"qwen": {"path": "ORG/Q"}},
            "groups": [0],
            "stages": [{"name": "s", "config": "quickstart", "sources": [{"corpus": "c"}]}],
            "evaluations": {"e": {"corpus": "c"}},
            "at_once": 2,
        }
        return plan_study(from_dict(StudyConfig, values | changes))

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "ROOT": str(self.root)}

    def run(self, plan: StudyPlan, is_told_to_stop: Callable[[], bool] = lambda: False) -> dict[str, str]:
        found = run_study(plan, self.env, is_told_to_stop=is_told_to_stop, program=self.program)
        return {name: status.state for name, status in found.items()}

    def goes_wrong(self, name: str, *how: object) -> None:
        (self.root / f"{name}.wrong").write_text(" ".join(map(str, how)))

    @property
    def journal(self) -> list[str]:
        """The directories of all starts so far."""
        return (self.root / "journal").read_text().split()


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setattr(local, "POLL_SEC", 0.01)
    monkeypatch.setattr(local, "LOOK_SEC", 0.02)
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    return Place(tmp_path, (sys.executable, "-I", "-S", str(tmp_path / "stand_in.py")))


ALONE = {"a": {"add": "ORG/A"}}  # where one codec is enough
CHAIN = ["codecs-a", "shards-c-a", "runs-a-qwen-ntp-s", "models-a-qwen-ntp-s", "scores-a-qwen-ntp-s-e"]


def test_all_steps_are_done_once_and_in_order(place: Place) -> None:
    plan = place.plan()
    assert {status.state for status in look(plan).values()} == {"ready", "waiting"}
    assert set(place.run(plan).values()) == {"done"}
    assert len(place.journal) == len(plan.steps) == 10
    assert [name for name in place.journal if "a-qwen" in name or name.endswith("-a")] == CHAIN
    assert set(place.run(plan).values()) == {"done"}
    assert len(place.journal) == 10, "nothing is done again"
    assert place.run(place.plan(groups=[0, 3]))["scores-b-qwen-mtp3-linear-mlp-s-e"] == "done"
    assert len(place.journal) == 16, "a kind of model more: three steps of each codec"


def test_a_step_that_fails_leaves_the_others_and_is_tried_again_by_the_next_start(place: Place) -> None:
    place.goes_wrong("runs-a-qwen-ntp-s", 2)
    place.goes_wrong("codecs-b", 1, "kill", 1)
    states = place.run(place.plan())
    assert states["train-a-qwen-ntp-s"] == states["codec-b"] == "failed"
    assert states["export-a-qwen-ntp-s"] == states["scores-a-qwen-ntp-s-e"] == states["shards-c-b"] == "blocked"
    assert states["shards-c-a"] == "done"
    assert place.journal.count("runs-a-qwen-ntp-s") == 1, "an error of the user is not mended by another try"
    assert place.journal.count("codecs-b") == 2, "a crash may be"
    statuses = look(place.plan())
    assert statuses["train-a-qwen-ntp-s"].why == "exit code 2: what it said last"
    assert statuses["codec-b"].why == "killed by SIGKILL: what it said last"
    assert statuses["scores-b-qwen-ntp-s-e"].why == "codec-b", "the step that failed, not the one before"
    (place.root / "codecs-b.wrong").unlink()
    assert set(place.run(place.plan()).values()) == {"done"}
    assert place.journal.count("shards-c-a") == 1
    assert look(place.plan())["codec-b"].starts == 3


@pytest.mark.full
def test_a_stopped_step_goes_on_in_the_same_call(place: Place) -> None:
    place.goes_wrong("runs-a-qwen-ntp-s", 75, 75)
    assert set(place.run(place.plan(codecs=ALONE)).values()) == {"done"}
    assert place.journal.count("runs-a-qwen-ntp-s") == 3


def test_a_signal_stops_all_and_the_next_start_goes_on(place: Place) -> None:
    place.goes_wrong("runs-a-qwen-ntp-s", "hang")
    states = place.run(place.plan(codecs=ALONE), (place.root / "hangs").exists)
    assert states["train-a-qwen-ntp-s"] == "stopped"
    assert states["scores-a-qwen-ntp-s-e"] != "done"
    assert look(place.plan(codecs=ALONE))["train-a-qwen-ntp-s"].state == "stopped"
    assert set(place.run(place.plan(codecs=ALONE)).values()) == {"done"}
    assert place.journal.count("codecs-a") == 1


def test_a_killed_start_ends_its_commands_and_the_next_one_goes_on(place: Place) -> None:
    """kill -9 of the whole process, at a step that works; the step is told, and leaves its lock when it ends."""
    place.goes_wrong("runs-a-qwen-ntp-s", "hang")
    code = (
        "import json, os, sys\n"
        "from slmkit.study.local import run_study\n"
        "from slmkit.study.config import load_study\n"
        "from slmkit.study.plan import plan_study\n"
        "run_study(plan_study(load_study(sys.argv[1])), os.environ, program=tuple(sys.argv[2:]))\n"
    )
    study = place.root / "study.yaml"
    study.write_text(json.dumps(place.plan(codecs=ALONE).config.model_dump()))
    process = subprocess.Popen([sys.executable, "-c", code, str(study), *place.program], env=place.env)
    while not (place.root / "hangs").exists():
        assert process.poll() is None
    assert look(place.plan(codecs=ALONE))["train-a-qwen-ntp-s"].state == "running"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert set(place.run(place.plan(codecs=ALONE)).values()) == {"done"}
    assert place.journal.count("codecs-a") == place.journal.count("shards-c-a") == 1
    assert place.journal.count("runs-a-qwen-ntp-s") == 2
    log = paths(place.plan(codecs=ALONE), place.plan(codecs=ALONE).step("train-a-qwen-ntp-s"))[1].read_text()
    assert [line[:10] for line in log.splitlines()] == ["== start 1", "== start 2"]


def test_a_step_is_held_by_one_process(place: Place) -> None:
    plan = place.plan()
    step = plan.step("codec-a")
    held = take(plan, step)
    assert held is not None
    assert take(plan, step) is None
    assert look(plan)["codec-a"].state == "running"
    held.release()
    assert look(plan)["codec-a"].state == "ready"


@pytest.mark.full
def test_what_was_made_with_other_settings_is_not_replaced(place: Place) -> None:
    place.run(place.plan())
    changed = place.plan(codecs={"a": {"add": "ORG/OTHER"}, "b": {"fit": "audio"}})
    states = place.run(changed)
    assert states["codec-a"] == "changed"
    assert states["shards-c-a"] == states["scores-a-qwen-ntp-s-e"] == "blocked"
    assert states["scores-b-qwen-ntp-s-e"] == "done"
    assert look(changed)["codec-a"].why == f"remove {place.root}/OUT/codecs/a, and it is made again"


def test_a_directory_that_appeared_whole_counts_although_its_start_was_killed(place: Place) -> None:
    plan = place.plan(codecs=ALONE)
    place.run(plan)
    record = paths(plan, plan.step("export-a-qwen-ntp-s"))[0]
    record.write_text(json.dumps({**json.loads(record.read_text()), "state": "started"}))
    assert look(plan)["export-a-qwen-ntp-s"].state == "done"
    record.write_text('{"seconds": "many"}')
    with pytest.raises(UserError, match=r"export-a-qwen-ntp-s\.json is damaged"):
        look(plan)


@pytest.mark.full
def test_a_step_alone_is_done_once_what_it_needs_is_there(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a job of Slurm runs, as a job on a node that dies may end like one that succeeded."""
    monkeypatch.setattr(Work.start, "__kwdefaults__", {"program": place.program})
    monkeypatch.setenv("ROOT", str(place.root))
    study = place.root / "study.yaml"
    study.write_text(json.dumps(place.plan().config.model_dump()))
    assert main(["study", "step", str(study), "shards-c-a"]) == 2
    assert "shards-c-a needs codec-a, which is not done" in capsys.readouterr().err
    place.goes_wrong("codecs-a", 75)
    assert main(["study", "step", str(study), "codec-a"]) == 75
    assert [main(["study", "step", str(study), name]) for name in ("codec-a", "codec-a", "shards-c-a")] == [0, 0, 0]
    assert place.journal == ["codecs-a", "codecs-a", "shards-c-a"]
    place.goes_wrong("shards-c-b", 2)
    assert [main(["study", "step", str(study), name]) for name in ("codec-b", "shards-c-b")] == [0, 2]
