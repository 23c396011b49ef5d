"""Steps whose loss or gradient is no number, and samples that cannot be read, are skipped and counted, or final."""

import re
from typing import Any

import pytest
from synthetic import write_corpus
from train.place import FRAMES, Place
from train.two_ranks import STEPS, start_two

from slmkit.config import run_dir
from slmkit.config.load import from_dict
from slmkit.config.train import TrainConfig
from slmkit.data.index import Corpus
from slmkit.train.run import prepare_run
from slmkit.world import World

BAD_STEP = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place.make(tmp_path_factory.mktemp("faults"))
    write_corpus(place.directory / "other", 10, frames=FRAMES, seed=1)
    return place


@pytest.mark.full
@pytest.mark.parametrize(("fault", "where"), [("bad_loss", "the loss"), ("bad_gradient", "the gradient")])
def test_a_bad_step_is_skipped_by_all_and_counted(place: Place, fault: str, where: str) -> None:
    keeping = {"save_every_minutes": 1e-5, "keep_every_steps": 5, "keep_last": 2}
    codes, errors = start_two(place, fault, fault, rank=1, step=BAD_STEP, **keeping)
    assert codes == [0, 0], errors[-4000:]
    assert run_dir.complete_steps(place.directory / fault) == [5, 10, STEPS - 1, STEPS], "a time slice of one step"
    assert re.search(rf"step {BAD_STEP} is skipped: {where} is not finite; samples: utterance", errors)
    records = [record for record in place.metrics(fault) if "loss" in record]
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert [record["faults/skipped_steps"] for record in records] == [0, 0, *[1] * (STEPS - 2)]
    bad = records[BAD_STEP - 1]
    assert (bad["loss"] is None) == (fault == "bad_loss")
    assert bad["optimizer/grad_norm"] is None
    assert all(record["loss"] is not None for record in records if record is not bad)
    assert records[-1]["loss"] < records[0]["loss"]


def test_too_many_bad_steps_end_the_run_with_the_samples(place: Place) -> None:
    codes, errors = start_two(place, "too-many", "bad_loss", rank=1, step=BAD_STEP, max_skipped_steps=0)
    assert codes == [2, 2]
    assert f"the loss is not finite at step {BAD_STEP}, and 0 steps were skipped before" in errors
    assert re.search(r"got: +samples utterance", errors)
    assert "at most max_skipped_steps = 0 such steps in a run" in errors
    assert errors.count("slmkit train:") == 1


class Damage:
    """A corpus that is damaged once its lengths are known."""

    def __init__(self, place: Place, kind: str) -> None:
        self.place, self.kind = place, kind
        self.corpus = Corpus.open(write_corpus(place.directory / kind, 30, frames=FRAMES).directory)
        self.tar = self.corpus.directory / self.corpus.shards[1].tar
        self.data = {"corpus": str(self.corpus.directory), "length_cache": str(place.directory / f"{kind}-lengths")}
        prepare_run(from_dict(TrainConfig, place.config(f"{kind} before", data=self.data)), World())
        content = bytearray(self.tar.read_bytes())
        at = int(self.corpus.shards[1].offsets["json"][4]) + 20
        if kind == "bit flip":
            content[at] ^= 1
            self.tar.write_bytes(content)
        elif kind == "truncation":
            self.tar.write_bytes(content[:at])
        else:
            self.tar.unlink()

    def start(self, name: str, data: dict[str, Any] | None = None, **change: Any) -> tuple[list[int], str]:
        return start_two(self.place, f"{self.kind} {name}", "none", data={**self.data, **(data or {})}, **change)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("bit flip", "its bytes have changed: CRC-32"),
        pytest.param("truncation", "bytes too early", marks=pytest.mark.full),
        pytest.param("missing", "No such file", marks=pytest.mark.full),
    ],
)
def test_a_damaged_shard_stops_the_run_or_is_skipped(place: Place, kind: str, reason: str) -> None:
    damage = Damage(place, kind)
    codes, errors = damage.start("stops")
    assert codes == [2, 2]
    assert str(damage.tar) in errors
    assert reason in errors
    assert f"a tar with sha256 {damage.corpus.shards[1].sha256}" in errors
    assert errors.count("slmkit train:") == 1
    codes, errors = damage.start("skips", data={"on_damage": "skip"})
    assert codes == [0, 0], errors[-4000:]
    assert f"a damaged sample is skipped: {damage.tar}" in errors
    losses = [record for record in place.metrics(f"{kind} skips") if "loss" in record]
    assert losses[-1]["faults/damaged_samples"] > 0
    if kind == "missing":  # most samples of all three; every split leaves out the same
        damage.start("other split", data={"on_damage": "skip"}, micro_rows=2)
        others = [record for record in place.metrics(f"{kind} other split") if "loss" in record]
        assert values(others, "loss") == pytest.approx(values(losses, "loss"), abs=1e-4)
        assert values(others, "faults/damaged_samples") == values(losses, "faults/damaged_samples")


def values(records: list[dict[str, Any]], name: str) -> list[float]:
    return [record[name] for record in records]
