"""Micro-batches from real shards: exactly once in every world, the same step everywhere, equal to one-by-one."""

import dataclasses
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from synthetic import codec_spec, write_conversations, write_corpus
from torch.utils.data._utils.pin_memory import pin_memory

from slmkit.data.batch import Batch
from slmkit.data.examples import ExampleFormat, TrainingData, describe_left_out
from slmkit.data.index import Corpus
from slmkit.data.lengths import UNREADABLE
from slmkit.data.loader import ahead, micro_batches
from slmkit.data.shards import Sample, ShardReader
from slmkit.data.sources import of_corpus, open_source
from slmkit.data.steps import Steps
from slmkit.data.text import TextTokenizer
from slmkit.errors import DamagedSample, UserError
from slmkit.model.config import SpeechLMConfig
from slmkit.model.pretrained import base_layout
from slmkit.model.slm import SpeechLM
from slmkit.world import BatchSplit

BASE = Path(__file__).resolve().parent.parent / "golden" / "slm" / "tiny_base"
ROW_TOKENS = 200
KILLED = """
import os, signal, sys
from pathlib import Path
from data.test_loader import *

data = open_data(Corpus.open(sys.argv[1]), TextTokenizer.load(BASE))
walk = Steps(data.plan(seed=1, row_tokens=ROW_TOKENS), 4).walk(epochs=500)
split = BatchSplit(global_rows=4, micro_rows=1)
try:
    for _ in micro_batches(data, split, walk, rank=0, row_tokens=ROW_TOKENS, num_workers=1):
        os.kill(int(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()[-1]), signal.SIGKILL)
except UserError as error:
    print(error)
    sys.exit(2)
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), 40)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.load(BASE)


def open_data(
    corpus: Corpus,
    tokenizer: TextTokenizer,
    group: int = 3,
    speaker: bool = True,
    task: str = "tts",
    sizes: tuple[int, ...] = (16, 16, 16),
    **options: object,
) -> TrainingData:
    layout = base_layout(tokenizer, codec_spec(sizes), group)
    form = ExampleFormat(task=task, group=group, speaker=speaker)
    return TrainingData.open(of_corpus(corpus), tokenizer, layout, form, **options)


def with_text(data: TrainingData, tokenizer: TextTokenizer, directory: Path) -> TrainingData:
    """`data` and twelve dialogues."""
    turns = [[[f"Which is number {i}?", " ".join(["it is this one"] * (1 + i % 4))]] * (1 + i % 3) for i in range(12)]
    path = write_conversations(directory / "talk.jsonl", turns)
    form = ExampleFormat(task="text", group=data.format.group, speaker=data.format.speaker)
    return TrainingData.joined(
        [data, TrainingData.open(open_source(path, "text"), tokenizer, data.layout, form, cache_dir=directory)]
    )


def run_epoch(
    data: TrainingData, world_size: int, micro_rows: int, epoch: int = 0, start: int = 0, num_workers: int = 0
) -> dict[int, list[Batch]]:
    """Micro-batches of all ranks, by step, from step `start` of an epoch."""
    split = BatchSplit(global_rows=4, micro_rows=micro_rows, world_size=world_size)
    steps: dict[int, list[Batch]] = {}
    for rank in range(world_size):
        walk = Steps(data.plan(seed=1, row_tokens=ROW_TOKENS), split.global_rows).walk(epochs=epoch + 1)
        planned = [step for step in walk if step.epoch == epoch and step.number >= start]
        options = {"rank": rank, "row_tokens": ROW_TOKENS, "num_workers": num_workers}
        for step, _, batch in micro_batches(data, split, planned, **options):
            steps.setdefault(step.number, []).append(batch)
    return steps


def equal(a: Batch, b: Batch) -> bool:
    """Whether every field is the same."""
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(Batch)]
    return all(torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


@pytest.mark.parametrize("group", [0, 2, 3, 6])
def test_exactly_once_and_the_same_step_in_every_world(corpus: Corpus, tokenizer: TextTokenizer, group: int) -> None:
    data = open_data(corpus, tokenizer, group)
    fits = {corpus.key(i) for i in range(len(corpus)) if data.lengths(np.array([i]))[0] <= ROW_TOKENS}
    reference = None
    for world_size, micro_rows in [(1, 4), (1, 1), (2, 1), (4, 1), (2, 2)]:
        steps = run_epoch(data, world_size, micro_rows)
        keys = {step: [key for batch in batches for key in batch.keys] for step, batches in steps.items()}
        assert sorted(key for step in keys.values() for key in step) == sorted(fits)
        assert reference in (None, keys)
        reference = keys


def test_workers_and_resuming_change_nothing(corpus: Corpus, tokenizer: TextTokenizer) -> None:
    data = open_data(corpus, tokenizer)
    plain = run_epoch(data, 2, 1, epoch=3)
    workers = run_epoch(data, 2, 1, epoch=3, num_workers=2)
    resumed = run_epoch(data, 2, 1, epoch=3, start=1)
    assert list(workers) == list(plain)
    assert list(resumed) == list(plain)[1:]
    for other in (workers, resumed):
        for step, batches in other.items():
            assert all(equal(a, b) for a, b in zip(plain[step], batches, strict=True))


@pytest.mark.parametrize("group", [0, 3, 4, 12])
def test_global_counts_are_the_targets_of_the_whole_step(
    corpus: Corpus, tokenizer: TextTokenizer, tmp_path: Path, group: int
) -> None:
    data = TrainingData.joined([open_data(corpus, tokenizer, group), open_data(corpus, tokenizer, group, task="asr")])
    steps = run_epoch(with_text(data, tokenizer, tmp_path), 2, 1)
    for batches in steps.values():
        groups = sum(torch.bincount(b.lm_groups, minlength=4) for b in batches)
        heads = [sum(len(b.head_positions) for b in batches)] * group
        expected = [int(groups[0]), *(heads if group else groups[1:].tolist())]
        assert all(b.global_counts.tolist() == expected for b in batches)
        if not group:
            assert sum(b.num_frames for b in batches) == expected[2]
    assert {key[:4] for batches in steps.values() for b in batches for key in b.keys} == {"utte", "talk"}


def test_a_batch_is_its_examples_back_to_back(corpus: Corpus, tokenizer: TextTokenizer) -> None:
    data = open_data(corpus, tokenizer)
    batch = next(b for batches in run_epoch(data, 1, 4).values() for b in batches)
    borders = batch.cu_seqlens.tolist()
    assert borders[-1] == batch.num_tokens == len(batch.position_ids)
    assert len(batch.keys) == len(borders) - 1 == len(batch.speaker) == len(batch.speaker_positions)
    placeholder = data.layout.id_of("<|placeholder|>")
    assert (batch.tokens[batch.speaker_positions, 0] == placeholder).all()
    for start, end in itertools.pairwise(borders):
        assert batch.position_ids[start:end].tolist() == list(range(end - start))
        assert batch.tokens[start, 0] == data.layout.bos_id
        assert batch.tokens[end - 1, 0] == data.layout.eos_id
    assert (batch.tokens[batch.lm_positions + 1, 0] == batch.lm_targets).all()
    assert not set(batch.lm_positions.tolist()) & {end - 1 for end in borders[1:]}
    assert batch.speech_mask[batch.head_positions + 1].all()


@pytest.mark.parametrize("group", [0, 12, 32])
def test_32_streams_of_65536_entries(tmp_path: Path, tokenizer: TextTokenizer, group: int) -> None:
    """A batch holds the very codes, as tokens and as classes."""
    sizes = (2**16,) * 32
    corpus = write_corpus(tmp_path, 2, frames=(3, 3), spec=codec_spec(sizes))
    data = open_data(corpus, tokenizer, group, sizes=sizes)
    plan = data.plan(seed=0, row_tokens=400, shuffle=False)
    (step,) = Steps(plan, 1).walk(epochs=1)
    split = BatchSplit(global_rows=1, micro_rows=1)
    ((_, _, batch),) = micro_batches(data, split, [step], rank=0, row_tokens=400)
    codes = np.concatenate([ShardReader(corpus).read(corpus_number(corpus, key)).codes.T.ravel() for key in batch.keys])
    first = data.layout.code_id(0, 0)
    stream = np.tile(np.arange(32), 6)
    spoken = batch.tokens[batch.tokens >= first]
    assert spoken[spoken < first + 32 * 2**16].tolist() == (first + 2**16 * stream + codes).tolist()
    assert codes.max() > 2**15
    if group:
        classes = batch.head_targets[batch.head_targets < 2**16]
        assert sorted(classes.tolist()) == sorted(codes.tolist())
        assert sum(batch.head_counts) == len(batch.head_positions) == 2 * (-(-3 * 32 // group) + 1)


def corpus_number(corpus: Corpus, key: str) -> int:
    return next(i for i in range(len(corpus)) if corpus.key(i) == key)


def test_the_speech_steps_to_predict_stand_in_the_order_of_their_phases(
    tokenizer: TextTokenizer, corpus: Corpus
) -> None:
    data = open_data(corpus, tokenizer, group=2)
    batch = next(b for batches in run_epoch(data, 1, 4).values() for b in batches)
    phases = []
    for position in batch.head_positions.tolist():
        step = 0
        while batch.speech_mask[position - step]:
            step += 1
        phases.append(2 * step % 3)
    assert phases == sorted(phases)
    assert batch.head_counts == tuple(phases.count(phase) for phase in range(3))


def test_an_empty_micro_batch_predicts_nothing(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    data = open_data(write_corpus(tmp_path, 1), tokenizer)
    batches = run_epoch(data, 4, 1)[0]
    empty = [batch for batch in batches if not batch.keys]
    assert len(empty) == 3
    assert all(b.num_tokens == 1 and not len(b.lm_positions) and not len(b.head_positions) for b in empty)
    assert all(batch.global_counts.tolist() == batches[0].global_counts.tolist() for batch in batches)


def test_the_held_out_part_depends_on_keys_alone(corpus: Corpus, tokenizer: TextTokenizer) -> None:
    def keys(data: TrainingData) -> list[str]:
        return [data.key(i) for i in range(len(data))]

    data = open_data(corpus, tokenizer, weight=0.5)
    train, held_out = data.split(0.3)
    assert 0 < len(held_out) < len(train)
    assert sorted(keys(train) + keys(held_out)) == keys(data)
    fewer = open_data(corpus, tokenizer, max_samples=20).split(0.3)
    assert keys(fewer[1]) == [key for key in keys(held_out) if int(key[-4:]) < 20]
    seen = [n for window in held_out.plan(seed=0, row_tokens=1000).windows(0) for n in window.samples.tolist()]
    assert sorted(seen) == list(range(len(held_out))), "held-out samples are seen once in an epoch, whatever the weight"


def test_samples_longer_than_a_row_are_reported(corpus: Corpus, tokenizer: TextTokenizer) -> None:
    data = open_data(corpus, tokenizer, group=0)
    (line,) = describe_left_out(data.left_out(100))
    (window,) = data.plan(seed=0, row_tokens=100).windows(0)
    assert line.startswith(f"{len(window.too_long)} of 40 samples are longer than a row and are left out: utterance-")
    assert line.count("positions") == 5
    assert describe_left_out(data.left_out(1000)) == []
    data.parts[0].table["text_positions"][7] = UNREADABLE
    (line,) = describe_left_out(data.left_out(1000))
    assert "1 of 40 samples cannot be read and are left out: utterance-0007; once they can, remove lengths-" in line


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_shard_is_named_as_it_is(tmp_path: Path, tokenizer: TextTokenizer, num_workers: int) -> None:
    corpus = write_corpus(tmp_path, 8)
    data = open_data(corpus, tokenizer)
    tar = tmp_path / corpus.shards[0].tar
    tar.write_bytes(b"x" * tar.stat().st_size)
    with pytest.raises(UserError, match=tar.name) as caught:
        run_epoch(data, 1, 4, num_workers=num_workers)
    assert "Traceback" not in str(caught.value)


class Damaged:
    """A reader to which one sample is lost."""

    def __init__(self, reader: ShardReader, lost: int) -> None:
        self.reader, self.lost = reader, lost

    def read(self, i: int) -> Sample:
        if i == self.lost:
            raise DamagedSample("utterance-0003", "a.tar", "a.tar: sample 'utterance-0003' cannot be read")
        return self.reader.read(i)


def test_a_damaged_sample_is_left_out_alike_in_every_world(corpus: Corpus, tokenizer: TextTokenizer) -> None:
    data = open_data(corpus, tokenizer, on_damage="skip")
    whole = run_epoch(data, 1, 4)
    source = data.parts[0].source
    lost = dataclasses.replace(source, reader=Damaged(source.reader, 3))
    data = dataclasses.replace(data, parts=(dataclasses.replace(data.parts[0], source=lost),))
    for world_size, num_workers in [(1, 0), (4, 0), (1, 2)]:
        steps = run_epoch(data, world_size, 4 // world_size, num_workers=num_workers)
        for step, batches in steps.items():
            keys = [key for batch in batches for key in batch.keys]
            assert keys == [key for key in whole[step][0].keys if key != "utterance-0003"]
            assert all(torch.equal(batch.global_counts, whole[step][0].global_counts) for batch in batches)
            skipped = [what for batch in batches for what in batch.skipped]
            assert len(skipped) == len(whole[step][0].keys) - len(keys)
            assert all("sample 'utterance-0003' cannot be read" in what for what in skipped)
    with pytest.raises(DamagedSample, match="utterance-0003"):
        run_epoch(dataclasses.replace(data, on_damage="stop"), 1, 4)


@pytest.mark.parametrize("head", ["linear", "transformer"])
@pytest.mark.parametrize("group", [0, 6])
def test_a_batch_of_text_alone_gives_every_parameter_a_gradient(
    corpus: Corpus, tokenizer: TextTokenizer, tmp_path: Path, group: int, head: str
) -> None:
    data = with_text(open_data(corpus, tokenizer, group), tokenizer, tmp_path)
    data = dataclasses.replace(data, parts=data.parts[1:])
    backbone = {"vocab_size": data.layout.size, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    options = {"head": head, "fusion": "mlp"} if group else {}
    config = SpeechLMConfig(
        backbone={**backbone, **heads},
        layout=data.layout.to_dict(),
        codec=codec_spec().to_dict(),
        group=group,
        speaker=True,
        **options,
    )
    model = SpeechLM(config)
    batch = run_epoch(data, 1, 4)[0][0]
    assert len(batch.keys)
    assert not len(batch.head_positions)
    model(batch).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.full)])
def test_memory_does_not_grow_over_epochs(corpus: Corpus, tokenizer: TextTokenizer, num_workers: int) -> None:
    """Of this process and of its workers: less than half a MiB in some ten of forty epochs of forty samples.

    A leak would grow in all of them; what other tests left in this process may settle in one."""
    data = open_data(corpus, tokenizer)
    split = BatchSplit(global_rows=4, micro_rows=4)
    walk = Steps(data.plan(seed=1, row_tokens=ROW_TOKENS), split.global_rows).walk(epochs=60)
    found = []
    for step, _, _ in micro_batches(data, split, walk, rank=0, row_tokens=ROW_TOKENS, num_workers=num_workers):
        if step.number == 0 and step.epoch in (20, 30, 40, 50):
            found.append(resident_bytes())
    found.append(resident_bytes())
    assert len(found) == 5
    assert min(after - before for before, after in itertools.pairwise(found)) < 2**19


def resident_bytes() -> int:
    """Private memory of this process and its children."""
    me = Path(f"/proc/{os.getpid()}")
    children = (me / "task" / str(os.getpid()) / "children").read_text().split()
    status = [(Path("/proc") / process / "status").read_text() for process in (str(os.getpid()), *children)]
    return sum(int(line.split()[1]) for s in status for line in s.splitlines() if line.startswith("RssAnon")) * 1024


@pytest.mark.parametrize("field", ["text_positions", "text_targets", "frames"])
def test_a_table_that_says_another_size_is_noticed(
    corpus: Corpus, tokenizer: TextTokenizer, tmp_path: Path, field: str
) -> None:
    """Else the loss would be divided by a wrong number of targets, or a row be longer than it may be."""
    open_data(corpus, tokenizer, cache_dir=tmp_path)
    (path,) = tmp_path.glob("lengths-*.npy")
    table = np.load(path)
    table[field][7] += 1
    np.save(path, table)
    with pytest.raises(DamagedSample, match=r"utterance-0007' is not of the size that the table of lengths has"):
        run_epoch(open_data(corpus, tokenizer, cache_dir=tmp_path), world_size=1, micro_rows=4)


def test_the_models_random_state_is_left_alone(corpus: Corpus, tokenizer: TextTokenizer) -> None:
    before = torch.get_rng_state()
    run_epoch(open_data(corpus, tokenizer), 1, 4)
    assert torch.equal(torch.get_rng_state(), before)


def test_refusals(corpus: Corpus, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such task"):
        ExampleFormat(task="sing", group=0)
    mute = write_corpus(tmp_path / "mute", 2, spec=codec_spec(speaker_dim=0))
    with pytest.raises(UserError, match="speaker-aware model needs speaker vectors"):
        open_data(mute, tokenizer)
    assert open_data(mute, tokenizer, speaker=False)
    other = write_corpus(tmp_path / "other", 2, spec=codec_spec((16, 16, 32)))
    with pytest.raises(UserError, match="other code streams than the model's vocabulary"):
        open_data(other, tokenizer)


def test_a_worker_that_is_killed_is_named(corpus: Corpus) -> None:
    """In a process of its own, in which torch has no handler of SIGCHLD yet."""
    done = forked.run(["-c", KILLED, str(corpus.directory)])
    assert done.returncode == 2, done.stderr
    assert re.match(r"a process that reads data has died\n  got: +process \d+, exit code -9\n", done.stdout), (
        done.stderr
    )
    assert "lower data.num_workers" in done.stdout


def test_a_batch_knows_its_targets_on_the_host_and_pins_all_its_tensors(
    corpus: Corpus, tokenizer: TextTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No memory can be pinned without a GPU, so that a copy stands for it."""
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)
    for group in (0, 3):
        for batch in itertools.chain.from_iterable(run_epoch(open_data(corpus, tokenizer, group), 1, 4).values()):
            assert list(batch.lm_counts) == batch.lm_groups.bincount(minlength=len(batch.global_counts)).tolist()
            pinned = pin_memory(batch)
            assert equal(pinned, batch)
            tensors = [f.name for f in dataclasses.fields(Batch) if isinstance(getattr(batch, f.name), torch.Tensor)]
            assert tensors
            assert all(getattr(pinned, name) is not getattr(batch, name) for name in tensors)


class Noting:
    """Stands in for a batch: notes when it is copied."""

    def __init__(self, name: str, notes: list[str]) -> None:
        self.name, self.notes = name, notes

    def to(self, device: str) -> "Noting":
        self.notes.append(f"copy {self.name} to {device}")
        return self


@pytest.mark.parametrize("fails", [False, True])
def test_each_batch_is_copied_before_the_one_before_it_is_computed_with(fails: bool) -> None:
    """And what was read before an error is computed with before it."""
    notes: list[str] = []

    def read() -> Iterator[tuple[int, int, Noting]]:
        for number, name in enumerate("abc"):
            yield number // 2, number % 2, Noting(name, notes)
        if fails:
            raise UserError("the next is damaged")

    try:
        for step, micro, batch in ahead(read(), lambda batch: batch.to("gpu")):
            notes.append(f"compute {step} {micro} {batch.name}")
    except UserError:
        notes.append("error")
    copies, computes = [f"copy {name} to gpu" for name in "abc"], ["compute 0 0 a", "compute 0 1 b", "compute 1 0 c"]
    assert notes == [*copies[:2], computes[0], copies[2], *computes[1:], *(["error"] if fails else [])]
    assert list(ahead(iter(()), dataclasses.replace)) == []
