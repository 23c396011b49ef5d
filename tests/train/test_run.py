"""What is decided before the first process starts DeepSpeed."""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import codec_spec, write_conversations, write_corpus, write_voices
from train.tiny_run import make_tiny, tiny_config

from slmkit.data import prompt
from slmkit.data.examples import TrainingData
from slmkit.errors import ConfigError, UserError
from slmkit.files import code_sha256
from slmkit.train import evaluation, loop
from slmkit.train import run as run_module
from slmkit.train.loop import Training
from slmkit.train.run import Run, check_agreement, check_facts, prepare_run, run_table
from slmkit.world import World


def steps_of_epoch(run: Run, epoch: int) -> int:
    return -(-run.steps.plan.num_rows(epoch) // run.steps.global_rows)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("run"))


@pytest.mark.full
def test_the_position_follows_from_the_steps_taken(place: Path) -> None:
    run = prepare_run(tiny_config(place), World())
    lengths = [steps_of_epoch(run, epoch) for epoch in range(50)]
    positions = [(epoch, step) for epoch, length in enumerate(lengths) for step in range(length)][:50]
    assert len({epoch for epoch, _ in positions}) > 2
    for done in range(50):
        again = prepare_run(tiny_config(place), World())
        assert [(step.epoch, step.number) for step in again.walk(done)] == positions[done:]
    assert list(run.walk(50)) == list(run.walk(60)) == []  # steps may have been lowered


def test_a_cursor_leads_to_the_same_steps(place: Path) -> None:
    run = prepare_run(tiny_config(place), World())
    steps = list(run.walk(0))
    for done in range(0, 50, 7):
        cursor = json.loads(json.dumps(run.cursor(done)))
        later = list(prepare_run(tiny_config(place), World()).walk(done, cursor))
        assert repr(later) == repr(steps[done:])


def test_a_run_of_steps_plans_no_epoch_ahead(place: Path) -> None:
    run = prepare_run(tiny_config(place, steps=10**9), World())
    assert run.steps.plan.window.cache_info().misses == 0
    next(run.walk(0))
    assert run.steps.plan.window.cache_info().misses == 1


def test_epochs_are_counted_in_steps(place: Path) -> None:
    change: dict[str, Any] = {"steps": None, "epochs": 3, "run_dir": str(place / "epochs")}
    run = prepare_run(tiny_config(place, **change), World())
    assert run.total_steps == sum(steps_of_epoch(run, epoch) for epoch in range(3))
    assert sorted({step.epoch for step in run.walk(0)}) == [0, 1, 2]
    again = prepare_run(tiny_config(place, **change), World())
    assert again.total_steps == run.total_steps
    assert again.steps.plan.window.cache_info().misses == 0


def test_a_damaged_count_of_steps_is_made_again(place: Path) -> None:
    change: dict[str, Any] = {"steps": None, "epochs": 2, "run_dir": str(place / "damaged")}
    total_steps = prepare_run(tiny_config(place, **change), World()).total_steps
    for file in (place / "damaged" / "cache").glob("rows-*.json"):
        file.write_text("[")
    assert prepare_run(tiny_config(place, **change), World()).total_steps == total_steps


@pytest.mark.parametrize("content", ["{}", "3", '{"value": {"samples": 30}, "sha256": "0"}'])
def test_a_damaged_count_of_what_is_left_out_is_made_again(place: Path, content: str) -> None:
    change: dict[str, Any] = {"run_dir": str(place / "other")}
    prepare_run(tiny_config(place, **change), World())
    (file,) = (place / "other" / "cache").glob("left-out-*.json")
    kept = file.read_text()
    file.write_text(content)
    prepare_run(tiny_config(place, **change), World())
    assert file.read_text() == kept


def test_work_for_all_processes_is_done_in_the_first(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def in_first(work: Callable[[], None]) -> None:
        asked.append(len(list((place / "together").rglob("lengths-*"))))
        work()
        asked.append(len(list((place / "together").rglob("lengths-*"))))

    monkeypatch.setattr(run_module, "in_first", in_first)
    prepare_run(tiny_config(place, run_dir=str(place / "together")), World(size=2, rank=1))
    assert asked == [0, 1]


def test_several_sources_are_one_run(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    sources = [
        {"path": str(place / "corpus"), "weight": 0.5},
        {"path": str(place / "second"), "task": "asr", "max_samples": 5},
        {"path": str(place / "talk.jsonl"), "task": "text"},
    ]
    write_corpus(place / "second", 8, seed=3)
    with write_conversations(place / "talk.jsonl", [[["Who?", f"Number {i}."]] for i in range(6)]).open("a") as file:
        file.write("{}\n")
    run = prepare_run(tiny_config(place, data={"corpus": None, "sources": sources, "row_tokens": 400}), World())
    assert len(run.data) == 20 + 5 + 6
    seen = [n for step in run.walk(0) if step.epoch < 2 for row in step.rows for n in row.tolist()]
    assert sorted(seen) == sorted([*range(20), *range(20, 31), *range(20, 31)])
    assert f"{place / 'talk.jsonl'}: lines that are left out: 1 no_turns" in caplog.text
    assert [fact["task"] for fact in run.facts["data.sources"]] == ["tts", "asr", "text"]
    write_corpus(place / "wider", 3, spec=codec_spec((16, 16, 32)))
    sources[1]["path"] = str(place / "wider")
    with pytest.raises(UserError, match="wider"):
        prepare_run(tiny_config(place, data={"corpus": None, "sources": sources}), World())
    with pytest.raises(UserError, match="no source has speech"):
        prepare_run(tiny_config(place, data={"corpus": None, "sources": sources[2:]}), World())


def test_shards_are_read_through_the_cache(place: Path) -> None:
    cache = place / "shard_cache"
    run = prepare_run(tiny_config(place, place / "cached", data={"shard_cache": str(cache)}), World())
    assert len(list(cache.glob("*.tar"))) == 2
    url = {"corpus": (place / "corpus").as_uri(), "shard_cache": str(cache)}
    remote = prepare_run(tiny_config(place, place / "remote", data=url), World())
    assert remote.facts == run.facts
    assert remote.data.parts[0].source.reader.read(3).key == run.data.key(3)
    assert repr(list(remote.walk(40))) == repr(list(run.walk(40)))
    with pytest.raises(UserError, match="shards at a URL are read through a shard cache"):
        prepare_run(tiny_config(place, place / "bare", data={"corpus": url["corpus"]}), World())


def test_held_out_samples_are_not_trained_on(place: Path) -> None:
    run = prepare_run(tiny_config(place, data={"eval_share": 0.3}), World())
    assert run.held_out is not None
    held_out, trained = ({data.key(i) for i in range(len(data))} for data in (run.held_out, run.data))
    assert held_out
    assert not held_out & trained
    assert len(held_out | trained) == len(run.held_out) + len(run.data) == 20


@pytest.fixture(scope="module")
def voices(place: Path) -> Path:
    """A corpus of 20 samples by five voices, v0 to v4."""
    return write_voices(place / "voices", 20, num_voices=5)


def speakers_of(data: TrainingData | None) -> list[str]:
    assert data is not None
    found = (data.locate(np.array([i]))[0] for i in range(len(data)))
    return [data.parts[part].source.reader.read_meta(number)["speaker"] for part, number in found]


def test_unseen_voices_are_kept_apart(place: Path, voices: Path) -> None:
    """Trained on, held out and left out: each sample is in one of the three, by its voice alone."""
    data = {"corpus": str(voices), "eval_speakers": ["v3"], "exclude_speakers": ["v1", "v0"]}
    run = prepare_run(tiny_config(place, data=data), World())
    assert Counter(speakers_of(run.data)) == {"v2": 4, "v4": 4}
    assert Counter(speakers_of(run.held_out)) == {"v3": 4}
    lines = [value for _, value in run_table(prepare_run(tiny_config(place, data=data), World()))]
    assert any("8 examples" in line for line in lines)
    assert "the voices v3" in lines
    assert "8 examples of the voices v1, v0" in lines


def test_several_sources_hold_out_the_same_voices(place: Path, voices: Path) -> None:
    sources = [{"path": str(voices), "task": task, "max_samples": count} for task, count in (("tts", 10), ("asr", 20))]
    data = {"corpus": None, "sources": sources, "exclude_speakers": ["v1"], "eval_share": 0.4}
    run = prepare_run(tiny_config(place, data=data), World())
    found = Counter([*speakers_of(run.data), *speakers_of(run.held_out)])
    assert found == {"v0": 6, "v2": 6, "v3": 6, "v4": 6}
    assert "6 examples of the voices v1" in [
        value for _, value in run_table(prepare_run(tiny_config(place, data=data), World()))
    ]


def test_a_voice_that_nobody_has_is_named(place: Path, voices: Path) -> None:
    for name in ("eval_speakers", "exclude_speakers"):
        with pytest.raises(UserError, match=r"a voice to be held out has no samples\n  got:      V3"):
            prepare_run(tiny_config(place, data={"corpus": str(voices), name: ["v1", "V3"]}), World())


def test_a_run_goes_on_with_the_same_unseen_voices_only(place: Path, voices: Path) -> None:
    """Which of them are held out for evaluation may change: training does not see it."""

    def facts(**names: list[str]) -> dict[str, Any]:
        return prepare_run(tiny_config(place, data={"corpus": str(voices), **names}), World()).facts

    saved = facts(eval_speakers=["v1"], exclude_speakers=["v2"])
    check_facts(facts(exclude_speakers=["v2", "v1"]), saved, Path("step-1"))
    for other in (facts(), facts(eval_speakers=["v1"])):
        for one, two in ((saved, other), (other, saved)):
            with pytest.raises(UserError, match=r"cannot continue step-1: data\.sources has changed"):
                check_facts(one, two, Path("step-1"))


def test_terms_are_named(place: Path) -> None:
    assert prepare_run(tiny_config(place, model={"group": 6}), World()).terms == [
        "text",
        "a1",
        "b1",
        "c1",
        "a2",
        "b2",
        "c2",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"row_tokens": 10}}, "there is nothing to train on\n  got:      20 samples, 20 of them longer"),
        ({"global_rows": 5, "micro_rows": 2}, "must equal global_rows exactly"),
        ({"deepspeed": "none.json"}, "there is no such DeepSpeed file"),
        ({"base": "nowhere"}, "no such model directory"),
        ({"data": {"corpus": "nowhere"}}, "nowhere"),
    ],
)
def test_what_does_not_fit_is_named(place: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        prepare_run(tiny_config(place, **change), World())
    assert message in str(caught.value)


def test_all_that_does_not_fit_is_named_at_once(place: Path) -> None:
    """The base, DeepSpeed's file, the batch and the codec of the speech samples."""
    change = {
        "base": "no_base",
        "deepspeed": "none.json",
        "global_rows": 5,
        "micro_rows": 2,
        "speak_every_steps": 1,
        "codec": "no_codec",
    }
    with pytest.raises(ConfigError) as caught:
        prepare_run(tiny_config(place, **change), World())
    shown = str(caught.value)
    assert shown.startswith("the run cannot start: 4 problems\n  - micro_rows * accumulation")
    for words in ("there is no such DeepSpeed file", "no such model directory", "no_codec"):
        assert words in shown


def test_all_corpora_that_are_missing_are_named(place: Path) -> None:
    sources = [{"path": str(place / name)} for name in ("corpus", "gone", "lost")]
    with pytest.raises(ConfigError, match=r"2 problems(.|\n)*/gone(.|\n)*/lost"):
        prepare_run(tiny_config(place, data={"corpus": None, "sources": sources}), World())


@pytest.mark.parametrize(
    "fact", ["vocabulary", "codec", "data.sources", "precision", "seed", "data.eval_share", "model.head"]
)
def test_a_changed_fact_is_named(place: Path, fact: str) -> None:
    run: Run = replace(prepare_run(tiny_config(place), World()))
    check_facts(run.facts, dict(run.facts), Path("step-1"))
    with pytest.raises(UserError, match=f"cannot continue step-1: {fact} has changed"):
        check_facts(run.facts, {**run.facts, fact: "other"}, Path("step-1"))
    with pytest.raises(UserError, match="expected: not recorded"):
        check_facts(run.facts, {name: value for name, value in run.facts.items() if name != fact}, Path("step-1"))


def test_changed_prompts_are_named_and_unknown_ones_are_let_through(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = prepare_run(tiny_config(place), World()).facts
    monkeypatch.setitem(prompt.TEMPLATES, "tts", prompt.TEMPLATES["tts"].replace("Read", "Say"))
    now = prepare_run(tiny_config(place), World()).facts
    with pytest.raises(UserError, match="cannot continue step-1: prompts has changed"):
        check_facts(now, before, Path("step-1"))
    earlier = {name: value for name, value in before.items() if name != "prompts"}
    check_facts(now, earlier, Path("step-1"))  # a checkpoint of a version that did not record them


def test_the_weights_of_sources_may_change_and_nothing_else_of_them(place: Path) -> None:
    facts = prepare_run(tiny_config(place), World()).facts
    (source,) = facts["data.sources"]
    check_facts(facts, {**facts, "data.sources": [{**source, "weight": 7.0}]}, Path("step-1"))
    with pytest.raises(UserError, match=r"cannot continue step-1: data\.sources has changed"):
        check_facts(facts, {**facts, "data.sources": [{**source, "task": "asr"}]}, Path("step-1"))


def test_all_changed_facts_are_named(place: Path) -> None:
    facts = prepare_run(tiny_config(place), World()).facts
    with pytest.raises(UserError, match=r"cannot continue step-1: precision, seed have changed\n  got:      fp32; 0\n"):
        check_facts(facts, {**facts, "seed": 1, "precision": "bf16"}, Path("step-1"))


def test_the_number_of_processes_may_change_but_must_be_known(place: Path) -> None:
    facts = prepare_run(tiny_config(place), World()).facts
    check_facts(facts, {**facts, "processes": 8}, Path("step-1"))
    unknown = {name: value for name, value in facts.items() if name != "processes"}
    with pytest.raises(UserError, match=r"processes has changed\n  got:      1\n  expected: not recorded"):
        check_facts(facts, unknown, Path("step-1"))


def test_processes_compare_the_code_and_the_versions_they_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside options and files, of which `test_owner` shows that a difference ends them."""
    compared: dict[str, Any] = {}
    monkeypatch.setattr(run_module, "check_equal", lambda what, values, next_step: compared.update(values))
    check_agreement(tiny_config(place))
    assert compared["code"] == code_sha256()
    assert compared["versions.torch"] == torch.__version__


def test_evaluation_reads_with_as_many_workers_as_training(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepare_run(tiny_config(place, data={"eval_share": 0.3, "num_workers": 3}), World())
    given: dict[str, Any] = {}
    monkeypatch.setattr(evaluation, "micro_batches", lambda *args, **options: given.update(options) or iter(()))
    monkeypatch.setattr(evaluation, "sum_over_ranks", lambda values: values)
    monkeypatch.setattr(loop, "finite", lambda record: record)
    training = SimpleNamespace(
        run=run,
        engine=SimpleNamespace(module=torch.nn.Identity()),
        device="cpu",
        step=0,
        log=SimpleNamespace(write=lambda step, record: None),
        pending=[loop.EVALUATION],
        pace=SimpleNamespace(restart=lambda: None),
    )
    Training.evaluate(training)  # type: ignore[arg-type]
    assert given["num_workers"] == 3
