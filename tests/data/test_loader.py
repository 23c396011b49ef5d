"""Micro-batches from real shards: exactly once in every world, the same step everywhere, equal to one-by-one."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic import codec_spec, write_corpus

from slmkit.data.index import Corpus
from slmkit.data.loader import ExampleFormat, TrainingData, micro_batches, report_too_long
from slmkit.data.text import TextTokenizer
from slmkit.errors import UserError
from slmkit.model.pretrained import base_layout
from slmkit.world import BatchSplit

BASE = Path(__file__).resolve().parent.parent / "golden" / "slm" / "tiny_base"
ROW_TOKENS = 200


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), 40)


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return TextTokenizer.load(BASE)


def open_data(
    corpus: Corpus, tokenizer: TextTokenizer, group: int = 3, speaker: bool = True, **options: object
) -> TrainingData:
    layout = base_layout(tokenizer, codec_spec(), group)
    return TrainingData.open(
        corpus, tokenizer, layout, ExampleFormat(task="tts", group=group, speaker=speaker), **options
    )


def run_epoch(data: TrainingData, world_size: int, micro_rows: int, **options: int) -> dict[int, list]:
    split = BatchSplit(global_rows=4, micro_rows=micro_rows, world_size=world_size)
    steps: dict[int, list] = {}
    for rank in range(world_size):
        for step, _, batch in micro_batches(data, split, rank=rank, seed=1, row_tokens=ROW_TOKENS, **options):
            steps.setdefault(step, []).append(batch)
    return steps


@pytest.mark.parametrize("group", [0, 3, 6])
def test_exactly_once_and_the_same_step_in_every_world(corpus: Corpus, tokenizer: TextTokenizer, group: int) -> None:
    data = open_data(corpus, tokenizer, group)
    fits = {corpus.key(i) for i in range(len(corpus)) if data.sizes[i, 0] <= ROW_TOKENS}
    reference = None
    for world_size, micro_rows in [(1, 4), (1, 1), (2, 1), (4, 1), (2, 2)]:
        steps = run_epoch(data, world_size, micro_rows, epoch=0)
        keys = {step: [key for batch in batches for key in batch.keys] for step, batches in steps.items()}
        assert sorted(key for step in keys.values() for key in step) == sorted(fits)
        assert reference in (None, keys)
        reference = keys


def test_workers_and_resuming_change_nothing(corpus: Corpus, tokenizer: TextTokenizer) -> None:
    data = open_data(corpus, tokenizer)
    plain = run_epoch(data, 2, 1, epoch=3)
    workers = run_epoch(data, 2, 1, epoch=3, num_workers=2)
    resumed = run_epoch(data, 2, 1, epoch=3, start_step=1)
    assert 0 in plain
    assert list(resumed) == list(plain)[1:]
    for other in (workers, resumed):
        for step, batches in other.items():
            for a, b in zip(plain[step], batches, strict=True):
                assert a.keys == b.keys
                assert torch.equal(a.tokens, b.tokens)
                assert torch.equal(a.speaker, b.speaker)


@pytest.mark.parametrize("group", [0, 3, 12])
def test_global_counts_are_the_targets_of_the_whole_step(corpus: Corpus, tokenizer: TextTokenizer, group: int) -> None:
    steps = run_epoch(open_data(corpus, tokenizer, group), 2, 1, epoch=0)
    for batches in steps.values():
        groups = sum(torch.bincount(b.lm_groups, minlength=4) for b in batches)
        heads = [sum(len(b.head_positions) for b in batches)] * group
        expected = [int(groups[0]), *(heads if group else groups[1:].tolist())]
        assert all(b.global_counts.tolist() == expected for b in batches)
        frames = sum(b.num_frames for b in batches)
        assert frames == sum(int(corpus.frames[int(k[-4:])]) for b in batches for k in b.keys)


def test_a_batch_is_its_examples_back_to_back(corpus: Corpus, tokenizer: TextTokenizer) -> None:
    data = open_data(corpus, tokenizer)
    batch = next(b for batches in run_epoch(data, 1, 4, epoch=0).values() for b in batches)
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


def test_an_empty_micro_batch_predicts_nothing(tmp_path: Path, tokenizer: TextTokenizer) -> None:
    data = open_data(write_corpus(tmp_path, 1), tokenizer)
    batches = run_epoch(data, 4, 1, epoch=0)[0]
    empty = [batch for batch in batches if not batch.keys]
    assert len(empty) == 3
    assert all(b.num_tokens == 1 and not len(b.lm_positions) and not len(b.head_positions) for b in empty)
    assert all(batch.global_counts.tolist() == batches[0].global_counts.tolist() for batch in batches)


def test_the_held_out_part_depends_on_keys_alone(corpus: Corpus, tokenizer: TextTokenizer) -> None:
    data = open_data(corpus, tokenizer)
    train, held_out = data.split(0.3)
    assert 0 < len(held_out) < len(train)
    assert sorted([*train.members, *held_out.members]) == list(range(len(corpus)))
    assert data.only(np.arange(40) % 2 == 0).split(0.3)[1].members.tolist() == [
        i for i in held_out.members if i % 2 == 0
    ]


def test_sizes_are_cached_per_tokenizer(corpus: Corpus, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    first = open_data(corpus, tokenizer, cache_dir=tmp_path)
    (cached,) = tmp_path.iterdir()
    assert (open_data(corpus, tokenizer, cache_dir=tmp_path).sizes == first.sizes).all()
    open_data(corpus, tokenizer, speaker=False, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    cached.write_bytes(b"damaged")
    assert (open_data(corpus, tokenizer, cache_dir=tmp_path).sizes == first.sizes).all()


def test_samples_longer_than_a_row_are_reported(corpus: Corpus, tokenizer: TextTokenizer) -> None:
    data = open_data(corpus, tokenizer, group=0)
    plan = data.plan(seed=0, epoch=0, row_tokens=100)
    (line,) = report_too_long(data, plan)
    assert f"{len(plan.too_long)} of 40 samples are longer than a row" in line
    assert list(report_too_long(data, data.plan(seed=0, epoch=0, row_tokens=1000))) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_shard_is_named_as_it_is(tmp_path: Path, tokenizer: TextTokenizer, num_workers: int) -> None:
    corpus = write_corpus(tmp_path, 8)
    data = open_data(corpus, tokenizer)
    tar = tmp_path / corpus.shards[0].tar
    tar.write_bytes(b"x" * tar.stat().st_size)
    with pytest.raises(UserError, match=tar.name) as caught:
        run_epoch(data, 1, 4, epoch=0, num_workers=num_workers)
    assert "Traceback" not in str(caught.value)


def test_the_models_random_state_is_left_alone(corpus: Corpus, tokenizer: TextTokenizer) -> None:
    before = torch.get_rng_state()
    run_epoch(open_data(corpus, tokenizer), 1, 4, epoch=0)
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
