"""YAML to frozen dataclasses: every mistake is found, all at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from slmkit.config.load import describe, from_dict, load_config, option, to_dict
from slmkit.errors import ConfigError, UserError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = option(0.5, help="share")
    kind: Literal["x", "y"] = option("x", help="x or y")

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate: got {self.rate}, expected 0 .. 1")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str = option(help="a name")
    count: int | None = option(None, help="how many")
    flags: tuple[bool, ...] = option((), help="switches")
    inner: Inner = option(factory=Inner, help="")


def test_values_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: run\ninner: {rate: 1}\nflags: [true]\n")
    config = load_config(Outer, tmp_path / "c.yaml", ["count=3", "inner.kind=y", "inner.rate=1e-1"])
    assert config == Outer(name="run", count=3, flags=(True,), inner=Inner(rate=0.1, kind="y"))
    assert from_dict(Outer, to_dict(config)) == config


def test_three_mistakes_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("nmae: run\ncount: many\ninner: {rate: 7}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, tmp_path / "c.yaml", ["inner.knid=y"])
    problems = "\n".join(caught.value.problems)
    for expected in (
        "nmae: unknown key; known: name, count",
        "count: got 'many', expected a whole number",
        "inner.knid: unknown key",
        "name: missing; a name",
    ):
        assert expected in problems
    with pytest.raises(ConfigError, match=r"inner\.rate: got 7\.0, expected 0 \.\. 1"):
        from_dict(Outer, {"name": "a", "inner": {"rate": 7}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": 3}, "name: got 3, expected text"),
        ({"name": "a", "count": True}, "count: got True, expected a whole number"),
        ({"name": "a", "inner": 4}, "inner: got 4, expected a group of options"),
        ({"name": "a", "inner": {"kind": "z"}}, "inner.kind: got 'z', expected one of 'x', 'y'"),
        ({"name": "a", "inner": {"rate": "fast"}}, "inner.rate: got 'fast', expected a number"),
        ({"name": "a", "flags": 1}, "flags: got 1, expected a list"),
    ],
)
def test_wrong_types_are_named(values: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_dict(Outer, values)
    assert message in str(caught.value)


@pytest.mark.parametrize("override", ["name", "=3", "name=[", "name.deep=1"])
def test_bad_overrides_are_named(override: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: a\n")
    with pytest.raises(ConfigError, match="override"):
        load_config(Outer, tmp_path / "c.yaml", [override])


@pytest.mark.parametrize("text", ["a: [", "!!python/object/apply:os.system ['true']", "\x00", "- a list"])
def test_files_that_are_not_a_mapping_are_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=r"c\.yaml"):
        load_config(Outer, tmp_path / "c.yaml")
    with pytest.raises(UserError, match="cannot read"):
        load_config(Outer, tmp_path / "missing.yaml")


def test_describe_lists_every_option() -> None:
    assert describe(Outer) == [
        "name (required): a name",
        "count (None): how many",
        "flags (()): switches",
        "inner.rate (0.5): share",
        "inner.kind ('x'): x or y",
    ]
