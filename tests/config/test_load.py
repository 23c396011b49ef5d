"""YAML to frozen models: every mistake is found, all at once, in our words; hostile files cost little."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Le, MinLen
from pydantic import Field, ValidationError

from slmkit.config.load import MAX_BYTES, Config, describe_options, from_dict, load_config, to_dict, to_yaml
from slmkit.config.values import Count, Flag, Name, Natural, Number, PathText, Seconds, Share, expected
from slmkit.errors import ConfigError, UserError


class Inner(Config):
    """The inner group."""

    rate: Share = Field(default=0.5, description="share of it")
    limit_sec: Seconds = Field(default=1.0, description="time")
    kind: Literal["x", "y"] = Field(default="x", description="which one")


class Outer(Config):
    """All of it."""

    name: Name = Field(description="its name")
    count: Count | None = Field(default=None, description="how many")
    flags: tuple[Flag, ...] = Field(default=(), description="switches")
    inner: Inner = Field(default=Inner(), description="inside")
    parts: tuple[Inner, ...] = Field(default=(), description="several")
    columns: dict[str, Name] = Field(default={}, description="names")
    number: Number = Field(default=0.0, description="any")
    first: Natural = Field(default=0, description="from")
    last: Natural = Field(default=9, description="to")
    path: PathText = Field(default="p", description="where")

    def clashes(self) -> Iterable[tuple[bool, str]]:
        yield self.first > self.last, f"first, last: got {self.first} and {self.last}, expected first <= last"


def problems(values: dict) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        from_dict(Outer, values)
    return caught.value.problems


def test_values_and_overrides(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: run\ninner: {rate: 1}\nflags: [true]\nnumber: 1e-4\n")
    config = load_config(Outer, tmp_path / "c.yaml", ["count=3", "inner.kind=y", "inner.rate=1e-1"])
    assert config == Outer(name="run", count=3, flags=(True,), inner=Inner(rate=0.1, kind="y"), number=1e-4)
    assert from_dict(Outer, to_dict(config)) == config
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert load_config(Outer, tmp_path / "again.yaml") == config
    with pytest.raises(ValidationError, match="frozen"):
        config.count = 4  # type: ignore[misc]


def test_mistakes_of_all_kinds_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("nmae: run\ncount: many\ninner: {rate: 7}\nfirst: 3\nlast: 2\n")
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, tmp_path / "c.yaml", ["inner.knid=y", "nonsense"])
    assert set(caught.value.problems) == {
        "override 'nonsense': expected key=value",
        "name: missing; its name",
        "nmae: unknown key; did you mean name?",
        "count: got 'many', expected a whole number, at least 1, or null",
        "inner.rate: got 7, expected a number, 0 to 1",
        "inner.knid: unknown key; did you mean inner.kind?",
        "first, last: got 3 and 2, expected first <= last",
    }


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": 3}, "name: got 3, expected a name"),
        ({"name": ""}, "name: got '', expected a name"),
        ({"count": True}, "count: got True, expected a whole number, at least 1, or null"),
        ({"count": "1.5"}, "count: got '1.5', expected a whole number, at least 1, or null"),
        ({"count": 3.0}, "count: got 3.0, expected a whole number, at least 1, or null"),
        ({"count": 0}, "count: got 0, expected a whole number, at least 1, or null"),
        ({"count": 10**30}, f"count: got {10**30}, expected a whole number, 1 to 1000000000, or null"),
        ({"number": True}, "number: got True, expected a number"),
        ({"number": float("nan")}, "number: got nan, expected a number"),
        ({"number": "1e999"}, "number: got '1e999', expected a number"),
        ({"number": "fast"}, "number: got 'fast', expected a number"),
        ({"inner": 4}, "inner: got 4, expected a group of options"),
        ({"inner": {"kind": "z"}}, "inner.kind: got 'z', expected one of 'x', 'y'"),
        ({"inner": {"limit_sec": 0}}, "inner.limit_sec: got 0, expected a number of seconds, more than 0"),
        ({"inner": {"limit_sec": 1e300}}, "inner.limit_sec: got 1e+300, expected a number of seconds, more than 0, at"),
        ({"flags": 1}, "flags: got 1, expected a list, each true or false"),
        ({"flags": [True, 1]}, "flags[1]: got 1, expected true or false"),
        ({"parts": [{}, {"rate": -1}]}, "parts[1].rate: got -1, expected a number, 0 to 1"),
        ({"columns": {"a": 3}}, "columns.a: got 3, expected a name"),
        ({"columns": {4: "a"}}, "columns: got the key 4, expected text"),
        ({True: 1}, "the file: got the key 1, expected text"),
        ({"path": "a\0b"}, "path: got 'a\\x00b', expected a path"),
        ({"path": "d/" + "x" * 256}, "path: got 'd/xxx"),
        ({"rate": 1}, "rate: unknown key; did you mean inner.rate?"),
        ({"zebra": "red"}, "zebra: unknown key; known: name, count, flags"),
        ({"first": 11, "count": "x"}, "first, last: got 11 and 9, expected first <= last"),
    ],
)
def test_a_wrong_value_is_named(values: dict, message: str) -> None:
    found = problems({"name": "a", **values})
    assert any(problem.startswith(message) for problem in found), found


def test_a_clash_is_not_claimed_of_a_value_that_is_wrong_itself() -> None:
    assert problems({"name": "a", "first": 11, "last": "x"}) == ("last: got 'x', expected a whole number, at least 0",)


def test_an_override_changes_one_of_the_places_an_alias_names(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: a\nparts: [&part {rate: 0.5}, *part]\n")
    config = load_config(Outer, tmp_path / "c.yaml", ["parts[0].rate=0.25"])
    assert [part.rate for part in config.parts] == [0.25, 0.5]


def test_an_override_reaches_into_a_list(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: a\nparts: [{}, {rate: 1}]\n")
    config = load_config(Outer, tmp_path / "c.yaml", ["parts[1].rate=0.25", "flags=[true, true]", "flags[0]=false"])
    assert (config.parts[1].rate, config.flags) == (0.25, (False, True))
    with pytest.raises(ConfigError, match=r"override 'parts\[2\].rate=1': parts has no \[2\]"):
        load_config(Outer, tmp_path / "c.yaml", ["parts[2].rate=1"])
    with pytest.raises(ConfigError, match=r"override 'name.deep=1': name has no deep"):
        load_config(Outer, tmp_path / "c.yaml", ["name.deep=1"])


@pytest.mark.parametrize(
    "override",
    [
        "name",
        "=3",
        "name]=a",
        "..name..=a",
        "name=[",
        "name.deep=1",
        "name=*a",
        "name=!!bool maybe",
        "count=!!timestamp soon",
        "name=!!binary ?",
    ],
)
def test_bad_overrides_are_named(override: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: a\n")
    with pytest.raises(ConfigError, match="override"):
        load_config(Outer, tmp_path / "c.yaml", [override])


ABSURD = {
    "infinite": ("count=1e400", "count: got '1e400'"),
    "digits": ("count=" + "9" * 5000, "the value is not YAML"),
    "hexadecimal": ("count=0x" + "f" * 5000, "count: got a number of thousands of digits"),
    "sexagesimal": ("count=" + "1:" * 20_000 + "1", "count: got a number of thousands of digits"),
    "text": ("name=" + "x" * 10_000_000, "too large, expected at most 128 KiB and 40 groups"),
    "list": ("flags=[" + "true," * 2_000_000 + "]", "too large"),
    "groups": ("inner." * 50_000 + "rate=1", "too large"),
    "depth": ("name=" + "[" * 60_000, "the value is not YAML"),
    "place": ("flags[" + "9" * 5000 + "]=1", "expected key=value"),
    "text that goes on": ("name=" + "x" * 100_000, "name: got 'xxx"),
}


@pytest.mark.parametrize(("override", "message"), ABSURD.values(), ids=ABSURD)
def test_an_absurd_override_is_named_within_a_second(override: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: a\n")
    started = time.process_time()
    with pytest.raises(ConfigError) as caught:
        load_config(Outer, tmp_path / "c.yaml", [override])
    assert time.process_time() - started < 1
    assert message in str(caught.value)
    assert len(str(caught.value)) < 1000


BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
HOSTILE = {
    "not YAML": "a: [",
    "code": "!!python/object/apply:os.system ['true']",
    "a null": "\x00",
    "not a mapping": "- a list",
    "aliases": BOMB,
    "merged aliases": "a: &a {x: 1}\n"
    + "".join(f"{chr(98 + i)}: &{chr(98 + i)}\n  <<: [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)),
    "an alias of a long text": "a: &a " + "x" * 50_000 + "\nb: [" + "*a, " * 19_000 + "]",
    "an alias of itself": "a: &a [*a]",
    "nested": "a: " + "[" * 100 + "]" * 100,
    "nested very deeply": "[" * 100_000,
    "large": "a: [" + "1," * MAX_BYTES + "]",
    "a key twice": "name: a\nname: b",
    "a long number": "count: " + "9" * 5000,
    "many wrong keys": "".join(f"key{i}: 1\n" for i in range(8000)),
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_named_within_a_second(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    started = time.process_time()
    with pytest.raises(UserError, match=r"c\.yaml") as caught:
        load_config(Outer, tmp_path / "c.yaml")
    assert time.process_time() - started < 1
    assert len(str(caught.value)) < 10_000


def test_what_aliases_stand_for_is_counted(tmp_path: Path) -> None:
    """Else a value that is wrong would be written out in the message about it."""
    (tmp_path / "c.yaml").write_text("\n".join([*BOMB.splitlines()[:6], "name: *f"]))
    with pytest.raises(UserError, match="it holds more than 100000 values, aliases and long texts written out"):
        load_config(Outer, tmp_path / "c.yaml")


def test_a_file_without_end_or_beginning_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="/dev/zero is too large"):
        load_config(Outer, "/dev/zero")
    with pytest.raises(UserError, match="cannot read"):
        load_config(Outer, tmp_path / "missing.yaml")


def test_describe_lists_every_option() -> None:
    assert describe_options(Outer) == [
        "  name     its name [a name; required]",
        "  count    how many [a whole number, at least 1; default: null]",
        "  flags    switches [a list, each true or false; default: []]",
        "  parts    several [a list of groups of options; default: []]",
        "  columns  names [a mapping of names; default: {}]",
        "  number   any [a number; default: 0.0]",
        "  first    from [a whole number, at least 0; default: 0]",
        "  last     to [a whole number, at least 0; default: 9]",
        "  path     where [a path; default: p]",
        "",
        "inner: The inner group.",
        "  inner.rate       share of it [a number, 0 to 1; default: 0.5]",
        "  inner.limit_sec  time [a number of seconds, more than 0; default: 1.0]",
        "  inner.kind       which one [one of 'x', 'y'; default: x]",
        "",
        "parts[]: The inner group.",
        "  parts[].rate       share of it [a number, 0 to 1; default: 0.5]",
        "  parts[].limit_sec  time [a number of seconds, more than 0; default: 1.0]",
        "  parts[].kind       which one [one of 'x', 'y'; default: x]",
    ]


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Annotated[tuple[int, ...], MinLen(1)], "a list, each a whole number"),
        (tuple[Annotated[int, Ge(1), Le(64)], ...], "a list, each a whole number, 1 to 64"),
        (type(None), "null"),
    ],
)
def test_words_for_lists_and_null(annotation, words):
    assert expected(annotation) == words
