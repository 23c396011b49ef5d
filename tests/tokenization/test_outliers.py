"""Outliers: each limit from both sides, a naive twin, any cut into shards, and the cost of a large corpus."""

import itertools
import json
import statistics
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slmkit.data.index import ShardIndex
from slmkit.tokenization.outliers import LIMITS, Outlier, OutlierSearch, ratio_limits

NAN = float("nan")


def shard(keys, **checks):
    """An index of which only the keys and checks matter."""
    columns = {name: np.array(column, dtype=np.float32) for name, column in checks.items()}
    none = np.zeros(len(keys), np.int64)
    return ShardIndex("a.tar", "", 0.0, tuple(keys), none, none, {}, {}, checks=columns)


def find_outliers(shards):
    search = OutlierSearch()
    for index in shards:
        search.add(index)
    return search.outliers()


@pytest.mark.parametrize(
    ("check", "sound", "odd", "limits"),
    [
        ("clipped", [0, 0.01], [0.0101, 1], [0.01, 0.01]),
        ("silence", [0, 0.6], [0.6001, 1], [0.6, 0.6]),
        ("dc", [-0.01, 0, 0.01], [-0.0101, 0.0101], [-0.01, 0.01]),
        ("frames_off", [-2, 2], [-2.001, 2.001], [-2, 2]),
        ("seconds_off", [-0.5, 0.5], [-0.501, 0.501], [-0.5, 0.5]),
    ],
)
def test_each_fixed_limit(check, sound, odd, limits):
    values = [NAN, *sound, *odd]
    keys = [f"k{i}" for i in range(len(values))]
    expected = [Outlier(f"k{1 + len(sound) + i}", check, odd[i], limits[i]) for i in range(len(odd))]
    assert list(find_outliers([shard(keys, **{check: values})])) == expected


def test_characters_per_second_are_compared_with_those_of_the_corpus():
    """15 and its neighbours are the corpus; 29 is far from them, though another corpus may speak so fast."""
    usual = [14, 15, 16, 15, 14.5, 15.5, 15, 14, 16, 15]
    low, high = ratio_limits(np.array(usual))
    assert (low, high) == pytest.approx((15 - 6 * 0.75, 15 + 6 * 0.75))  # 1.4826 * 0.5 is less than 0.05 * 15
    keys = [f"k{i}" for i in range(12)]
    found = list(find_outliers([shard(keys, chars_per_sec=[*usual, 29, 8])]))
    assert [(outlier.key, outlier.value) for outlier in found] == [("k10", 29.0), ("k11", 8.0)]
    fast = [27, 28, 29, 30, 31, 28, 29, 27, 30, 29, 29, 28]
    assert list(find_outliers([shard(keys, chars_per_sec=fast)])) == []


def test_a_corpus_that_is_wrong_as_a_whole_does_not_excuse_itself():
    found = list(find_outliers([shard("abc", chars_per_sec=[90, 91, 92])]))
    assert found == [Outlier(key, "chars_per_sec", value, 40.0) for key, value in zip("abc", [90, 91, 92], strict=True)]
    found = list(find_outliers([shard("abc", chars_per_sec=[0.1, 0.1, 0.1])]))
    assert [outlier.limit for outlier in found] == [1.0] * 3


def test_unknown_checks_and_shards_without_checks_are_left_alone():
    assert list(find_outliers([shard("ab"), shard("cd", loudness=[1e9, -1e9], seconds=[0, 1e6]), shard("")])) == []


def test_an_outlier_is_a_line_of_json_in_short_numbers():
    (found,) = find_outliers([shard(["ключ\n"], clipped=[0.1])])
    assert found.line().endswith(b"}\n")
    assert json.loads(found.line()) == {"key": "ключ\n", "check": "clipped", "value": 0.1, "limit": 0.01}


def naive(utterances):
    """[(key, {check: value})] -> outliers, by the words of the module's docstring."""
    ratios = [checks["chars_per_sec"] for _, checks in utterances if "chars_per_sec" in checks]
    limits = dict(LIMITS)
    if ratios:
        median = statistics.median(ratios)
        deviation = max(1.4826 * statistics.median(abs(r - median) for r in ratios), 0.05 * median)
        low, high = limits["chars_per_sec"]
        own = (float(f"{median + side * deviation:.4g}") for side in (-6, 6))
        limits["chars_per_sec"] = max(low, next(own)), min(high, next(own))
    for key, checks in utterances:
        for name in sorted(checks):
            low, high = limits[name]
            if not low <= checks[name] <= high:
                yield key, name, checks[name]


# Eighths and quarters are exact in float32; the limits are none of them, but for some that are exact themselves.
values = st.fixed_dictionaries(
    {},
    optional={
        "chars_per_sec": st.integers(0, 400).map(lambda n: n / 8),
        "dc": st.integers(-3, 3).map(lambda n: n / 256),
        "frames_off": st.integers(-12, 12).map(lambda n: n / 4),
    },
)


@given(corpus=st.lists(values, max_size=40), cuts=st.lists(st.integers(0, 40), max_size=4))
def test_naive_twin_and_any_cut_into_shards(corpus, cuts):
    utterances = [(f"k{i}", checks) for i, checks in enumerate(corpus)]
    bounds = [0, *sorted(min(cut, len(corpus)) for cut in cuts), len(corpus)]
    shards = []
    for start, end in itertools.pairwise(bounds):
        part = utterances[start:end]
        names = {name for _, checks in part for name in checks}
        columns = {name: [checks.get(name, NAN) for _, checks in part] for name in names}
        shards.append(shard([key for key, _ in part], **columns))
    found = [(outlier.key, outlier.check, outlier.value) for outlier in find_outliers(shards)]
    assert found == list(naive(utterances))


@pytest.mark.full
def test_a_thousand_shards_are_quick_and_small():
    """Per utterance: less than 20 microseconds (2 to 6 here, under tracemalloc) and 30 bytes, of hexadecimal keys."""
    draw = np.random.default_rng(0)
    keys = [draw.bytes(12).hex() for _ in range(1000)]
    names = [name for name in LIMITS if name != "chars_per_sec"]
    columns = {name: draw.uniform(-1, 1, 1000) * LIMITS[name][1] for name in names}
    index = shard(keys, **columns, chars_per_sec=draw.normal(15, 2, 1000))
    num_shards = 300
    search = OutlierSearch()
    start = time.process_time()
    tracemalloc.start()
    for _ in range(num_shards):
        search.add(index)
    held_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    found = sum(1 for _ in search.outliers())
    assert time.process_time() - start < num_shards * 0.02
    assert held_bytes < num_shards * 1000 * 30
    assert found == num_shards * len(list(find_outliers([index])))
