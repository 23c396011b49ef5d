"""User errors say what, got, expected, next step, and survive the way between processes."""

import pickle

import pytest

from slmkit.errors import BadSample, ConfigError, DamagedSample, UserError


def test_the_four_lines() -> None:
    text = str(UserError("it is wrong", got=1, expected=2, next_step="make it 2"))
    assert text.split("\n") == ["it is wrong", "  got:      1", "  expected: 2", "  next:     make it 2"]


@pytest.mark.parametrize(
    "error",
    [
        UserError("a", got=1, expected=2),
        ConfigError("x.yaml", ["one", "two"]),
        BadSample("silent", "no sound", got=3),
        DamagedSample("utt", "a.tar", "it is broken", expected="a whole one"),
    ],
)
def test_errors_cross_processes(error: UserError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy), vars(copy)) == (type(error), str(error), vars(error))


def test_all_problems_are_counted() -> None:
    assert "x.yaml: 2 problems\n  - one\n  - two" in str(ConfigError("x.yaml", ["one", "two"]))
