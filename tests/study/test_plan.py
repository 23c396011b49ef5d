"""Cells and steps of a study: which there are, what they share, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from slmkit.assets import assets
from slmkit.cli.main import main
from slmkit.config.load import from_dict
from slmkit.config.train import load_run
from slmkit.errors import UserError
from slmkit.model.heads.kinds import HEADS
from slmkit.study.config import StudyConfig, load_study
from slmkit.study.plan import StudyPlan, plan_study

STUDIES = [asset.path for asset in assets() if asset.kind == "study"]
RATES = {  # streams, frames per second
    "facodec": (3, 80),
    "encodec4": (4, 75),
    "encodec8": (8, 75),
    "wavtokenizer40": (1, 40),
    "wavtokenizer75": (1, 75),
    "bigcodec": (1, 80),
    "speechtokenizer5": (5, 50),
    "speechtokenizer8": (8, 50),
    "melvq1": (1, 80),
    "melvq2": (2, 80),
    "melvq3": (3, 80),
}
LONG_SEC = 30  # that a row must hold


def small(**changes: Any) -> StudyPlan:
    """Two codecs, next-token and MTP-3 with two heads, and two stages."""
    values = {
        "out": "OUT",
        "corpora": {"train": {"source": "audio/train"}, "test": {"source": "audio/test", "options": "kind=libritts"}},
        "codecs": {"a": {"fit": "audio/train", "options": "--streams 1"}, "b": {"path": "ORG/B"}},
        "bases": {"tiny": {"texts": "train", "options": "--hidden-size 64"}},
        "groups": [0, 3],
        "heads": ["linear", "mlp"],
        "stages": [
            {"name": "first", "config": "quickstart", "sources": [{"corpus": "train"}], "options": "steps=4"},
            {
                "name": "second",
                "config": "quickstart",
                "sources": [{"corpus": "train", "task": "asr", "weight": 2}, {"path": "t.jsonl", "task": "text"}],
                "eval_corpus": "test",
            },
        ],
        "rules": [{"where": {"codec": ["b"], "group": [0]}, "stage": "first", "options": "data.row_tokens=99"}],
        "evaluations": {"said": {"corpus": "test", "options": "--limit 4", "copy_options": ""}},
    }
    return plan_study(from_dict(StudyConfig, values | changes))


def test_cells_are_named_for_what_they_are_and_next_token_models_have_no_heads() -> None:
    kinds = ["ntp", "mtp3-linear-mlp", "mtp3-mlp-mlp"]
    assert [cell.name for cell in small().cells] == [f"{codec}-tiny-{kind}" for codec in "ab" for kind in kinds]
    left = small(leave_out=[{"codec": ["a"], "group": [3]}, {"head": ["mlp"]}], speaker=[True])
    assert [cell.name for cell in left.cells] == [
        "a-tiny-ntp-speaker",
        "b-tiny-ntp-speaker",
        "b-tiny-mtp3-linear-mlp-speaker",
    ]
    assert [left.model_label(row) for row in left.rows if row.cell] == ["a NTP", "b NTP", "b MTP-3"]
    assert left.model_label(left.rows[0]) == "a, codec alone"


def test_each_corpus_is_tokenized_with_each_codec_once_and_steps_stand_behind_what_they_need() -> None:
    plan = small()
    names = [step.name for step in plan.steps]
    assert len(set(names)) == len(names)
    assert sorted(name for name in names if name.startswith("shards")) == [
        *("shards-test-a", "shards-test-b", "shards-train-a", "shards-train-b"),
    ]
    assert [name for name in names if name.startswith(("codec", "base"))] == ["codec-a", "base-tiny"]
    for number, step in enumerate(plan.steps):
        assert set(step.needs) <= set(names[:number]), step.name
    one = "a-tiny-mtp3-mlp-mlp"
    assert plan.step(f"train-{one}-second").needs == (
        *("codec-a", "base-tiny", f"export-{one}-first", "shards-train-a", "shards-test-a"),
    )
    assert plan.step(f"scores-{one}-second-said").needs == (f"export-{one}-second", "codec-a", "shards-test-a")
    assert plan.all_needs("base-tiny") == {"codec-a", "shards-train-a"}
    assert not any("first" in need or "second" in need for need in plan.all_needs("scores-a-copy-said"))
    with pytest.raises(UserError, match="no such step"):
        plan.step("train-nothing")


def test_commands_are_those_of_slmkit() -> None:
    plan = small()
    words = plan.step("train-b-tiny-ntp-first").words
    assert words[:3] == ("train", "--config", "quickstart")
    assert words[-2:] == ("steps=4", "data.row_tokens=99")
    config = load_run("launch/quickstart.yaml", words[3:])
    assert (config.run_dir, config.base, config.codec) == ("OUT/runs/b-tiny-ntp-first", "OUT/bases/tiny", "ORG/B")
    config = load_run("launch/quickstart.yaml", plan.step("train-a-tiny-mtp3-mlp-mlp-second").words[3:])
    assert (config.model.group, config.model.head, config.model.fusion) == (3, "mlp", "mlp")
    assert config.init_from == "OUT/models/a-tiny-mtp3-mlp-mlp-first"
    assert config.data.eval_corpus == "OUT/shards/test-a"
    assert [(s.path, s.task, s.weight) for s in config.data.all_sources] == [
        ("OUT/shards/train-a", "asr", 2.0),
        ("t.jsonl", "text", 1.0),
    ]
    told = ("tokenize", "run", "audio/test", "ORG/B", "OUT/shards/test-b", "--no-progress", "kind=libritts")
    assert plan.step("shards-test-b").words == told


def test_a_digest_changes_with_what_made_a_step_and_with_nothing_else() -> None:
    before, after = small(), small(codecs={"a": {"fit": "audio/train"}, "b": {"path": "ORG/B"}}, heads=["linear"])
    changed = {step.name for step in after.steps if step.digest != before.step(step.name).digest}
    assert changed == {step.name for step in after.steps if "codec-a" in {step.name, *after.all_needs(step.name)}}
    assert "train-b-tiny-ntp-first" in changed  # its base is made with the text of shards of codec a
    assert "shards-test-b" not in changed


def test_what_is_wrong_is_named_all_at_once() -> None:
    with pytest.raises(UserError) as refused:
        small(
            codecs={"a": {"fit": "x", "path": "y"}, "b": {"path": "z"}},
            bases={"tiny": {"texts": "nothing"}},
            evaluations={"said": {"corpus": "none"}},
            rules=[{"where": {"codec": ["q"]}, "stage": "third", "options": "steps=4"}],
            resources={"train": {"processes": 8, "nodes": 2}, "scores": {"processes": 4, "nodes": 2}},
        )
    told = str(refused.value)
    assert "rules[0].where.codec: got 'q', expected one of a, b" in told
    assert "rules[0].stage: got 'third', expected one of first, second" in told
    assert "codecs.a: got path and fit, expected one of path, add, fit" in told
    assert "bases.tiny.texts: got 'nothing', expected one of train, test" in told
    assert "evaluations.said.corpus: got 'none'" in told
    assert "resources.scores: got 4 processes on 2 nodes, expected 1 on 1" in told
    assert "resources.train" not in told
    with pytest.raises(UserError, match="codecs: got the key 'b-c', expected letters, digits and _"):
        small(codecs={"b-c": {"path": "z"}})
    with pytest.raises(UserError, match="resources: got the key 'trein', expected one of 'codec', 'shards'"):
        small(resources={"trein": {"gpus": 8}})
    with pytest.raises(UserError, match=r"options: got .*expected options as on a command line"):
        small(rules=[{"options": "steps='4"}])
    with pytest.raises(UserError, match="the study has no cell"):
        small(leave_out=[{}])
    with pytest.raises(UserError, match="compares nothing"):
        small(stages=[], rules=[], evaluations={"said": {"corpus": "test"}})


def test_a_command_that_would_be_refused_is_named_before_anything_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for change, told in (
        ("evaluations.memorized.options=--limitt 4", "ntp-speaker-speak-memorized: `slmkit evaluate` refuses"),
        ("stages[0].options=optimizer.lr=high", "optimizer.lr: got 'high', expected a number"),
        ("stages[0].config=quikstart", "train-melvq1-tiny-ntp-speaker-speak: no file of this name"),
        ("stages[0].options=deepspeed=zero2_bf61", "train-melvq1-tiny-ntp-speaker-speak: no file of this name"),
        ("heads=[lnear]", "mtp3-lnear-mlp-speaker-speak: model.head: there is no such kind of head"),
        ("resources={train: {nodes: 3, processes: 2}}", "micro_rows 1, world 6, global_rows 2"),
    ):
        code = main(["study", "run", "quick", f"out={tmp_path}/out", change])
        assert (code, list(tmp_path.iterdir())) == (2, []), change
        assert told in capsys.readouterr().err
    monkeypatch.setitem(HEADS, "lnear", HEADS["linear"])
    assert main(["study", "plan", "quick", "heads=[lnear]"]) == 0, "a kind from outside"
    assert main(["study", "plan", "quik"]) == 2
    assert "quick?" in capsys.readouterr().err


def test_help_explains_the_file(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main(["study", "run", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > 80] == []
    options = "codecs.NAME.fit", "stages[].sources[].corpus", "rules[].where.group", "resources.NAME.processes"
    assert {*options} <= {line.split()[0] for line in lines if line.strip()}


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_study_that_comes_with_slmkit_is_planned(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And its rows hold speech of 30 s and its text, so many that a step fills the GPUs."""
    assert main(["study", "plan", path.stem]) == 0
    plan = plan_study(load_study(path))
    assert f"{len(plan.cells)} models, {len(plan.steps)} steps" in capsys.readouterr().out
    cells = {f"{cell.name}-{stage.name}": cell for cell in plan.cells for stage in plan.config.stages}
    for step in (step for step in plan.steps if step.kind == "train"):
        cell = cells[step.label]
        options = dict(word.split("=", 1) for word in step.words if "=" in word)
        streams, rate = RATES[cell.codec]
        is_long_enough = LONG_SEC * rate * streams / max(1, cell.group) < int(options.get("data.row_tokens", 0))
        assert is_long_enough or path.stem == "quick", step.name
        positions = int(options.get("data.row_tokens", 0)) * int(options.get("global_rows", 0))
        gpus = plan.resources(step).processes
        assert positions >= 16_384 * gpus or path.stem == "quick", f"{step.name} does not fill {gpus} GPUs"


def test_studies_that_share_a_directory_share_their_steps() -> None:
    """A model that two tables need is trained once."""
    made: dict[str, str] = {}
    places: dict[str, set[str]] = {}
    for path in STUDIES:
        config = load_study(path)
        assert config.table not in places.setdefault(config.out, set()), f"{path}: another study writes this table"
        places[config.out].add(config.table)
        for step in plan_study(config).steps:
            assert made.setdefault(step.directory, step.digest) == step.digest, f"{path}: {step.name}"
