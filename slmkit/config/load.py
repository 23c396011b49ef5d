"""Frozen dataclasses from YAML files and `--set a.b=c` overrides.

A configuration is a tree of frozen keyword-only dataclasses. Unknown keys, missing keys, values of the wrong type and
values a class refuses (a `ValueError` from its `__post_init__`) are collected and reported all at once. A line of
meaning and unit stands in `field(metadata={"help": ...})` of every field; `describe` prints them.

Example:
    config = load_config(TokenizeConfig, "job.yaml", ["batch_sec=60", "codec.device=cuda"])
"""

import dataclasses
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from slmkit.errors import ConfigError, UserError

C = TypeVar("C")


def option(default: Any = dataclasses.MISSING, *, help: str, factory: Any = dataclasses.MISSING) -> Any:
    """A dataclass field with its line of meaning and unit."""
    if factory is not dataclasses.MISSING:
        return dataclasses.field(default_factory=factory, metadata={"help": help})
    return dataclasses.field(default=default, metadata={"help": help})


def load_config(kind: type[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """Read `path` (YAML, may be None), apply overrides `dotted.key=yaml value`, and build a `kind`.

    Raises UserError when the file cannot be read, ConfigError with every problem found.
    """
    values = read_yaml(path) if path is not None else {}
    problems: list[str] = []
    for text in overrides:
        _override(values, text, problems)
    config = _build(kind, values, "", problems)
    if problems:
        raise ConfigError(str(path or "configuration"), problems)
    return config


def from_dict(kind: type[C], values: dict[str, Any], source: str = "configuration") -> C:
    """Build a `kind` from plain values, with the same checks as `load_config`."""
    problems: list[str] = []
    config = _build(kind, values, "", problems)
    if problems:
        raise ConfigError(source, problems)
    return config


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file (safe loader). Raises UserError naming the file otherwise."""
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"cannot read {path} as YAML: {error}", expected="a UTF-8 YAML file") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a mapping", got=type(values).__name__, expected="key: value lines")
    return values


def to_dict(config: Any) -> dict[str, Any]:
    """Plain values of a configuration, ready for YAML or JSON."""
    return dataclasses.asdict(config)


def describe(kind: type, prefix: str = "") -> list[str]:
    """One line per option of `kind`: dotted key, default, meaning."""
    hints = typing.get_type_hints(kind)
    lines = []
    for field in dataclasses.fields(kind):
        nested = _dataclass_of(hints[field.name])
        if nested is not None:
            lines += describe(nested, f"{prefix}{field.name}.")
            continue
        default = "required" if field.default is dataclasses.MISSING else repr(field.default)
        if field.default_factory is not dataclasses.MISSING:
            default = repr(field.default_factory())
        lines.append(f"{prefix}{field.name} ({default}): {field.metadata.get('help', '')}")
    return lines


def _override(values: dict[str, Any], text: str, problems: list[str]) -> None:
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        problems.append(f"override {text!r}: expected key=value")
        return
    try:
        value = yaml.safe_load(raw)
    except yaml.YAMLError:
        problems.append(f"override {text!r}: the value is not YAML")
        return
    *parents, leaf = key.strip().split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            problems.append(f"override {text!r}: {parent} is not a group of options")
            return
    values[leaf] = value


def _build(kind: Any, values: Any, prefix: str, problems: list[str]) -> Any:
    if not isinstance(values, dict):
        problems.append(f"{prefix.rstrip('.') or 'configuration'}: got {values!r}, expected a group of options")
        return None
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for name in values:
        if name not in fields:
            problems.append(f"{prefix}{name}: unknown key; known: {', '.join(fields)}")
    before = len(problems)
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(hints[name], values[name], f"{prefix}{name}", problems)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            problems.append(f"{prefix}{name}: missing; {field.metadata.get('help', 'required')}")
    if len(problems) > before:
        return None
    try:
        return kind(**arguments)
    except ValueError as error:
        problems.extend(f"{prefix}{line}" for line in str(error).split("\n"))
        return None


def _dataclass_of(hint: Any) -> type | None:
    for choice in typing.get_args(hint) or (hint,):
        if dataclasses.is_dataclass(choice) and isinstance(choice, type):
            return choice
    return None


def _convert(hint: Any, value: Any, where: str, problems: list[str]) -> Any:
    """`value` as the annotated type, or a problem. Whole numbers become floats, numbers in strings like 1e-4 too."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _convert(next(a for a in arguments if a is not type(None)), value, where, problems)
    if origin is typing.Literal:
        if value not in arguments:
            problems.append(f"{where}: got {value!r}, expected one of {', '.join(map(repr, arguments))}")
        return value
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, f"{where}.", problems)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            problems.append(f"{where}: got {value!r}, expected a list")
            return ()
        return tuple(_convert(arguments[0], item, f"{where}[{i}]", problems) for i, item in enumerate(value))
    if origin is dict or hint is dict:
        if not isinstance(value, dict):
            problems.append(f"{where}: got {value!r}, expected a mapping")
        return value
    if hint is float and not isinstance(value, bool):
        try:
            return float(value)
        except (TypeError, ValueError):
            problems.append(f"{where}: got {value!r}, expected a number")
            return value
    if hint is not Any and (not isinstance(value, hint) or (hint is int and isinstance(value, bool))):
        problems.append(f"{where}: got {value!r}, expected {_NAMES.get(hint, hint)}")
    return value


_NAMES = {str: "text", int: "a whole number", bool: "true or false"}
