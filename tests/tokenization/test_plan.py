"""Plans: every item of the source in one place, the same lines for the same source, refusals with their reasons."""

import hashlib
import json
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.corpora.base import Audio, Cut, Utterance
from slmkit.data.ledger import Failure
from slmkit.errors import UserError
from slmkit.tokenization.plan import Rules, TokenizationPlan, make_plan, sift_parts
from slmkit.tokenization.screen import Screen


def utterance(key, **changes):
    return Utterance(key=key, audio=Audio(f"{key}.wav"), text="Hi é \u2028.", source="s", **changes)


def make(out, items, *, shard_samples, rules=None):
    return make_plan(out, sift_parts([lambda: items], rules or Rules(), num_workers=0), shard_samples=shard_samples)


def refused(plan):
    with plan.open_refused() as lines:
        return [json.loads(line) for line in lines]


@given(keys=st.lists(st.text(max_size=3), max_size=20), shard_samples=st.integers(1, 5))
def test_every_item_is_planned_or_refused(tmp_path_factory, keys, shard_samples):
    out = tmp_path_factory.mktemp("plan")
    items = [Failure(key, "odd", "") if "1" in key else utterance(key) for key in keys]
    plan = make(out, items, shard_samples=shard_samples)
    planned = [item for shard in range(len(plan.shards)) for item in plan.items(shard)]
    assert len(planned) + len(refused(plan)) == len(keys)
    assert plan.num_items == len(planned)
    assert sum(plan.refused.values()) == len(refused(plan))
    good = [key for key in dict.fromkeys(keys) if key and "1" not in key and key.encode("utf-8", "replace")]
    assert [item.key for item in planned] == [key for key in good if key == key.encode("utf-8", "ignore").decode()]
    assert all(shard.items == shard_samples for shard in plan.shards[:-1])


def named(path, *, by_file=True):
    return utterance(path.rpartition("/")[2])._replace(source=f"{path}.wav", named_by_file=by_file)


PATHS = st.builds("/".join, st.lists(st.sampled_from("ab"), min_size=1, max_size=3))


@given(items=st.lists(st.builds(named, PATHS, by_file=st.booleans()), max_size=12), shard_samples=st.integers(1, 4))
def test_files_of_one_name_have_their_paths_as_keys(tmp_path_factory, items, shard_samples):
    out = tmp_path_factory.mktemp("plan")
    plan = make(out, items, shard_samples=shard_samples)
    planned = [item for shard in range(len(plan.shards)) for item in plan.items(shard)]
    keys = [item.key for item in planned]
    assert len(set(keys)) == len(keys)
    assert len(planned) + len(refused(plan)) == len(items)
    assert sum(plan.refused.values()) == len(refused(plan))
    assert all(shard.items == shard_samples for shard in plan.shards[:-1])
    names = [item.key for item in items]
    for item in planned:
        name, path = item.audio.path.removesuffix(".wav"), item.source.removesuffix(".wav")
        assert item.key in ((name,) if not item.named_by_file or names.count(name) == 1 else (name, path))
    if all(item.named_by_file for item in items):  # each file is there, and once
        assert {item.source for item in planned} == {item.source for item in items}
        wanted = {i.source.removesuffix(".wav") if names.count(i.key) > 1 else i.key for i in items}
        assert set(keys) == wanted


def test_keys_do_not_depend_on_how_many_processes_read(tmp_path):
    parts = [partial(iter, [named(f"{speaker}/{i:03d}", by_file=True) for i in range(3)]) for speaker in "abc"]
    parts.append(partial(iter, [named("d/once")]))
    for workers in (0, 2):
        make_plan(tmp_path / str(workers), sift_parts(parts, Rules(), num_workers=workers), shard_samples=4)
    plan, other = (TokenizationPlan.open(tmp_path / str(workers)) for workers in (0, 2))
    assert plan.shards == other.shards
    keys = [item.key for shard in range(3) for item in plan.items(shard)]
    assert keys == [*(f"{speaker}/{i:03d}" for speaker in "abc" for i in range(3)), "once"]


def test_a_plan_made_before_keys_could_be_paths_is_read(tmp_path):
    values = json.loads(json.dumps(named("a/b"), default=str))
    assert Utterance.from_values(values[:-1]) == named("a/b", by_file=False)


def test_an_utterance_survives_the_plan(tmp_path):
    items = [
        utterance("a/b. c", speaker="s", language="en", seconds=1.5, extra={"dnsmos": 3.2, "x": [None, "é"]}),
        Utterance(key="k", audio=Audio("t.tar", 512, 90), text=Path("k.txt"), source="t"),
        Utterance(key="c", audio=Audio("l.mp3"), text="x", source="l", cut=Cut(1.0, 2.5, 0.5, 3.0), seconds=1.5),
        Utterance(key="p", audio=Audio("p.parquet", row_group=0, row=3, column="audio"), text="y", source="p"),
    ]
    plan = make(tmp_path, items, shard_samples=3)
    assert [*plan.items(0), *plan.items(1)] == items
    assert TokenizationPlan.open(tmp_path) == plan
    assert (plan.num_items, sum(shard.seconds for shard in plan.shards)) == (4, 3.0)


def test_rules_choose_by_where_an_utterance_comes_from(tmp_path):
    rules = Rules(sources=("Emilia/*", "more/?.tar/*"))
    sources = {"a": "Emilia/EN/x.tar/a.mp3", "b": "Emilia-YODAS/EN/x.tar/b.mp3", "c": "more/1.tar/c.mp3", "d": "d.mp3"}
    items = [utterance(key)._replace(source=source) for key, source in sources.items()]
    plan = make(tmp_path, items, shard_samples=9, rules=rules)
    assert [item.key for item in plan.items(0)] == ["a", "c"]
    assert [(line["key"], line["reason"]) for line in refused(plan)] == [("b", "other_source"), ("d", "other_source")]


def test_what_rules_refuse_has_no_part_in_whose_key_is_whose(tmp_path):
    """Its own reason is told, the next item of its key is kept, and no name changes for it."""
    rules = Rules(sources=("b/*",), screen=Screen(least={"dnsmos": 3.5}))
    good, low = {"dnsmos": 4.0}, {"dnsmos": 1.5}
    items = [named(path)._replace(extra=good) for path in ("a/0", "b/0", "b/1", "c/1")]
    items += [utterance("k", extra=extra)._replace(source="b/m.jsonl") for extra in (low, good, low, good)]
    items += [utterance("\udcff", extra=good)._replace(source="\udcff")]
    plan = make(tmp_path, items, shard_samples=9, rules=rules)
    assert [(item.key, item.source) for item in plan.items(0)] == [
        ("0", "b/0.wav"),
        ("1", "b/1.wav"),
        ("k", "b/m.jsonl"),
    ]
    assert plan.refused == {"other_source": 3, "low_dnsmos": 2, "duplicate_key": 1}
    assert refused(plan)[-1]["key"] == "\\udcff"


def test_rules_refuse_by_what_the_source_says(tmp_path):
    rules = Rules(min_sec=1.0, max_sec=10.0, screen=Screen(least={"dnsmos": 3.5}), languages=frozenset({"en", "de"}))
    good = {"language": "en", "seconds": 2.0, "extra": {"dnsmos": 3.5}}
    cases = {
        "good": {},
        "unknown_length": {"seconds": None},
        "short": {"seconds": 0.9},
        "long": {"seconds": 10.1},
        "nan": {"seconds": float("nan")},
        "french": {"language": "fr"},
        "tongueless": {"language": ""},
        "noisy": {"extra": {"dnsmos": 3.4999}},
        "unjudged": {"extra": {"dnsmos": None}},
    }
    plan = make(tmp_path, [utterance(key, **good | c) for key, c in cases.items()], shard_samples=9, rules=rules)
    assert [item.key for item in plan.items(0)] == ["good", "unknown_length"]
    assert {line["key"]: line["reason"] for line in refused(plan)} == {
        "short": "too_short",
        "long": "too_long",
        "nan": "too_short",
        "french": "other_language",
        "tongueless": "other_language",
        "noisy": "low_dnsmos",
        "unjudged": "no_dnsmos",
    }
    assert plan.refused["other_language"] == 2
    assert all(line["detail"] for line in refused(plan))


def test_the_same_source_gives_the_same_plan(tmp_path):
    items = [utterance(f"u{i}", seconds=i / 3) for i in range(25)]
    for name in ("a", "b"):
        make(tmp_path / name, iter(items), shard_samples=4)
    files = [sorted((tmp_path / name / "plan").iterdir()) for name in ("a", "b")]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ([7, 1.0, 10**15, 10**15, "0"], "has changed since it was written: shard 0"),
        ([7, 1.0, 0, 10**18, "0"], "has changed since it was written: shard 0"),
        ([7, 1.0, -1, 4, "0"], "is not a plan"),
        ([7, float("nan"), 0, 4, "0"], "is not a plan"),
        ([10**30, 1.0, 0, 4, "0"], "is not a plan"),
        ([7.0, 1.0, 0, 4, "0"], "is not a plan"),
        ([7, 1.0, 0, 2, hashlib.sha256(b"[4").hexdigest()], "is not a plan: shard 0"),
        ([7, 1.0, 0, 5, hashlib.sha256(b"[[3]]").hexdigest()], "is not a plan: shard 0"),
    ],
)
def test_a_plan_of_nonsense_is_refused(tmp_path, shard, message):
    make(tmp_path, [utterance("a")], shard_samples=1)
    (tmp_path / "plan/plan.json").write_text(json.dumps({"refused": {}, "shards": [shard]}))
    (tmp_path / "plan/items.jsonl").write_bytes(b"[4\n" if shard[3] == 2 else b"[[3]]\n")
    with pytest.raises(UserError, match=message):
        TokenizationPlan.open(tmp_path).items(0)


def test_a_plan_that_was_cut_short_is_none(tmp_path):
    def source():
        yield utterance("a")
        raise UserError("the source is gone")

    with pytest.raises(UserError, match="the source is gone"):
        make(tmp_path, source(), shard_samples=1)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match=r"holds no plan[\s\S]*slmkit tokenize plan"):
        TokenizationPlan.open(tmp_path)
    make(tmp_path, [utterance("a")], shard_samples=1)
    with pytest.raises(UserError, match="exists already"):
        make(tmp_path, [utterance("b")], shard_samples=1)
    assert [item.key for item in TokenizationPlan.open(tmp_path).items(0)] == ["a"]


def test_a_plan_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write"):
        make(tmp_path / "file", [], shard_samples=1)


def test_a_plan_that_was_changed_is_noticed(tmp_path):
    make(tmp_path, [utterance("a"), utterance("b")], shard_samples=1)
    path = tmp_path / "plan/items.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"a.wav"', b'"c.wav"'))
    plan = TokenizationPlan.open(tmp_path)
    assert plan.items(1)[0].key == "b"
    with pytest.raises(UserError, match=r"items\.jsonl has changed since it was written: shard 0"):
        plan.items(0)
    path.unlink()
    with pytest.raises(UserError, match="cannot read"):
        plan.items(0)


@pytest.mark.parametrize("content", ["[]", "{}", '{"shards": [[1, 2]], "refused": {}}', '{"shards": 3, "refused": {}}'])
def test_a_file_that_is_no_plan_is_an_error(tmp_path, content):
    (tmp_path / "plan").mkdir()
    (tmp_path / "plan/plan.json").write_text(content)
    with pytest.raises(UserError, match="is not a plan"):
        TokenizationPlan.open(tmp_path)
