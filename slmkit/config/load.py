"""Configurations from YAML files and overrides such as `optimizer.lr=1e-4`.

A configuration is a tree of frozen pydantic models (`Config`). Unknown keys, missing keys, values of the wrong type or
out of range, and values that do not fit together are reported all at once, as lines of one ConfigError. Files are
limited in size, depth, and what their aliases expand to, so that a hostile one costs little time and memory.

Example:
    config = load_config(TokenizeConfig, "job.yaml", ["batch_sec=60", "codec=models/facodec"])
"""

import copy
import difflib
import itertools
import re
import types
import typing
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from slmkit.config.values import OR_NULL, expected, group_of
from slmkit.errors import ConfigError, UserError
from slmkit.files import read_bounded
from slmkit.texts import excerpt

MAX_BYTES = 128 * 1024
MAX_DEPTH = 40
MAX_VALUES = 100_000  # of a file, aliases written out
VALUE_CHARS = 32  # so much text of one scalar counts as a value
SHOWN_CHARS = 100  # of a wrong value
# The one written in C is ten times as fast and comes with every wheel of PyYAML.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Config(BaseModel):
    """A group of options: frozen, no other keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def clashes(self) -> Iterable[tuple[bool, str]]:
        """(is wrong, line) for values that each are fine but do not fit together.

        A line begins with the options it is about: "steps, epochs: got both, expected one of the two". `load_config`
        and `from_dict` report them; the constructor looks at each value alone.
        """
        return ()


C = TypeVar("C", bound=Config)


def load_config(kind: type[C], path: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """Read `path` (YAML, may be None), apply overrides `dotted.key=yaml value`, and build a `kind`.

    Raises UserError when the file cannot be read, ConfigError with every problem found.
    """
    values = read_yaml(path) if path is not None else {}
    problems = [problem for text in overrides for problem in _apply_override(values, text)]
    return _build(kind, values, str(path or "configuration"), problems)


def from_dict(kind: type[C], values: dict[str, Any], source: str = "configuration") -> C:
    """Build a `kind` from plain values, with the same checks as `load_config`."""
    return _build(kind, values, source, [])


def to_dict(config: Config) -> dict[str, Any]:
    """Plain values of a configuration, ready for YAML or JSON."""
    return config.model_dump()


def to_yaml(config: Config) -> str:
    """A configuration with all its options as a YAML file."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises UserError naming the file when it cannot be read, is none or is too large."""
    try:
        values = parse_yaml(read_bounded(path, MAX_BYTES).decode())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"cannot read {path} as YAML: {str(error)[:500]}", expected="a UTF-8 YAML file") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a mapping", got=type(values).__name__, expected="lines of key: value")
    return values


def parse_yaml(text: str) -> Any:
    """The plain value that YAML text holds.

    Raises yaml.YAMLError or ValueError when it is not YAML, a key stands twice, it is nested too deeply, or its aliases
    would expand to a huge value.
    """
    loader = LOADER(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _num_values(node, {}, 0)
        try:
            return _unshared(loader.construct_document(node))
        except (LookupError, AttributeError, TypeError) as error:  # PyYAML's, of tags such as `!!bool maybe`
            raise ValueError(f"a value does not fit its tag: {error!r:.100}") from error
    finally:
        loader.dispose()


def _unshared(value: Any) -> Any:
    """A value whose parts are all its own: what an alias names is there once for each place."""
    if isinstance(value, dict):
        return {key: _unshared(part) for key, part in value.items()}
    return [_unshared(part) for part in value] if isinstance(value, list) else value


def _num_values(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many values `node` stands for, aliases written out. Each node is counted once, however often it is named."""
    if depth > MAX_DEPTH:
        raise ValueError(f"nested more than {MAX_DEPTH} deep")
    if id(node) in known:
        return known[id(node)]
    children: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(keys) != len(set(keys)):
            twice = next(key for index, key in enumerate(keys) if key in keys[:index])
            raise ValueError(f"the key {_shown(twice)} is given twice{node.start_mark}")
        children = [child for pair in node.value for child in pair]
    text = len(node.value) // VALUE_CHARS if isinstance(node, yaml.ScalarNode) else 0
    total = 1 + text + sum(_num_values(child, known, depth + 1) for child in children)
    if total > MAX_VALUES:
        raise ValueError(f"it holds more than {MAX_VALUES} values, aliases and long texts written out")
    known[id(node)] = total
    return total


def describe_options(kind: type[Config]) -> list[str]:
    """Every option of `kind`, a line each: key, two or more spaces, meaning, what it takes, default.

    Options come in groups, each after an empty line and a line that names it.
    """
    lines: list[str] = []
    for prefix, group in [("", kind), *_groups(kind)]:
        hints = typing.get_type_hints(group, include_extras=True)
        options = {name: field for name, field in group.model_fields.items() if not _is_group(hints[name])}
        if not options:  # groups alone
            continue
        if prefix:
            lines += ["", f"{prefix.rstrip('.')}: {(group.__doc__ or '').splitlines()[0]}"]
        width = max(len(prefix + name) for name in options)
        for name, field in options.items():
            takes, default = expected(hints[name]), "required"
            if not field.is_required():
                as_yaml = str(yaml.safe_dump(field.default, default_flow_style=True, width=10**6)).split("\n")[0]
                default = f"default: {as_yaml}"
            if field.default is None:
                takes = takes.removesuffix(OR_NULL)
            lines.append(f"  {prefix + name:{width}}  {field.description} [{takes}; {default}]")
    return lines


def _is_group(annotation: Any) -> bool:
    group, is_list = group_of(annotation)
    return group is not None and not is_list


def _groups(kind: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """(prefix of its keys, group) of every group of options in `kind`; `key[].` in lists, `key.NAME.` in mappings."""
    for name, annotation in typing.get_type_hints(kind, include_extras=True).items():
        group, is_list = group_of(annotation)
        if group is not None:
            is_mapping = is_list and typing.get_origin(annotation) is dict
            inside = f"{prefix}{name}{'.NAME' if is_mapping else '[]' if is_list else ''}."
            yield inside, group
            yield from _groups(group, inside)


def _apply_override(values: dict[str, Any], text: str) -> Iterator[str]:
    """Put `key=value` into `values`; yields what is wrong with it. `sources[0].weight` reaches into a list."""
    key, equals, raw = text.partition("=")
    steps = re.findall(r"\[[0-9]{1,9}\]|[^.\[\]]+", key.strip())
    parts = [int(step[1:-1]) if step[0] == "[" else step for step in steps]
    if not equals or not parts or _dotted(parts) != key.strip():
        yield f"override {_shown(text)}: expected key=value"
        return
    if len(parts) > MAX_DEPTH or len(text) > MAX_BYTES:
        yield f"override {_shown(text)}: too large, expected at most {MAX_BYTES // 1024} KiB and {MAX_DEPTH} groups"
        return
    try:
        value = parse_yaml(raw)
    except (yaml.YAMLError, ValueError, RecursionError):
        yield f"override {_shown(text)}: the value is not YAML"
        return
    group: Any = values
    for index, part in enumerate(parts):
        is_there = part < len(group) if isinstance(part, int) and isinstance(group, list) else isinstance(part, str)
        if not is_there or not isinstance(group, dict if isinstance(part, str) else list):
            yield f"override {_shown(text)}: {_dotted(parts[:index])} has no {_dotted([part])}"
            return
        if index == len(parts) - 1:
            group[part] = value
        elif isinstance(group, dict) and group.get(part) is None:
            group[part] = {}
        group = group[part]


def _build(kind: type[C], values: dict[str, Any], source: str, problems: list[str]) -> C:
    """A `kind`, or ConfigError with the given problems and all others.

    Wrong values are taken out and the rest is built without them, so that clashes between right ones are found too.
    """
    left, taken_out = copy.deepcopy(values), list[str]()
    config = None
    while config is None:
        try:
            config = kind.model_validate(left)
        except ValidationError as refused:
            found = refused.errors(include_url=False)
            new = (error for error in found if not _is_inside(_dotted(error["loc"]), taken_out))
            problems += [_worded(kind, error, values) for error in itertools.islice(new, ConfigError.MAX_SHOWN + 1)]
            taken = {_take_out(kind, left, line["loc"]) for line in found} - {"", *taken_out}
            if not taken:
                break
            taken_out += taken
    if config is not None:
        problems += _clashes(config, taken_out)
    if config is None or problems:
        raise ConfigError(source, list(dict.fromkeys(problems)))
    return config


def _clashes(config: Config, taken_out: Sequence[str], path: tuple[int | str, ...] = ()) -> Iterator[str]:
    """What does not fit together in a configuration, but for options that have been taken out."""
    for is_wrong, line in config.clashes():
        names = [_dotted((*path, name)) for name in line.split(":")[0].split(", ")]
        if is_wrong and not any(_is_inside(name, taken_out) for name in names):
            yield f"{_dotted(path)}.{line}".removeprefix(".")
    for name in type(config).model_fields:
        value = getattr(config, name)
        items = enumerate(value) if isinstance(value, tuple) else [(None, value)]
        for index, item in items:
            if isinstance(item, Config):
                yield from _clashes(item, taken_out, (*path, name) if index is None else (*path, name, index))


def _worded(kind: type[Config], error: Any, value: Any) -> str:
    """What one of pydantic's errors says, in our words; `value` is the whole configuration as given."""
    path, key = error["loc"], _dotted(error["loc"])
    if error["type"] == "invalid_key" or path[-1] == "[key]":
        bad = path[:-1] if path[-1] == "[key]" else path
        words = expected(typing.get_args(_type_at(kind, bad[:-1]))[0]) if path[-1] == "[key]" else "text"
        return f"{_dotted(bad[:-1]) or 'the file'}: got the key {_shown(bad[-1])}, expected {words}"
    if error["type"] == "extra_forbidden":
        return f"{excerpt(key, SHOWN_CHARS)}: unknown key; {_suggestion(kind, path)}"
    if error["type"] == "missing":
        return f"{key}: missing; {_field_at(kind, path).description}"
    for step in path:  # to what was given: pydantic may have converted it
        value = value[step]
    words = expected(_type_at(kind, path), with_limit=error["type"] == "less_than_equal")
    return f"{excerpt(key, SHOWN_CHARS)}: got {_shown(value)}, expected {words}"


def _suggestion(kind: type[Config], path: tuple[int | str, ...]) -> str:
    """The known key that an unknown one is most like; without one the known keys beside it."""
    siblings = list(typing.cast(Any, group_of(_type_at(kind, path[:-1]))[0]).model_fields)
    leaf, beside = str(path[-1])[:SHOWN_CHARS], _dotted(path[:-1])
    near = [_dotted((beside, name)) if beside else name for name in difflib.get_close_matches(leaf, siblings, 1)]
    everywhere = [f"{prefix}{name}" for prefix, group in [("", kind), *_groups(kind)] for name in group.model_fields]
    near += [name for name in everywhere if name.split(".")[-1] == leaf]
    return f"did you mean {near[0]}?" if near else f"known: {', '.join(siblings)}"


def _type_at(kind: Any, path: Sequence[int | str]) -> Any:
    """The annotation of the option at a path of keys and places in lists."""
    for step in path:
        while typing.get_origin(kind) in (typing.Annotated, typing.Union, types.UnionType):
            kind = next(argument for argument in typing.get_args(kind) if argument is not type(None))
        arguments = typing.get_args(kind)
        if arguments:  # tuple[item, ...] or dict[key, value]
            kind = arguments[0 if isinstance(step, int) else -1]
        else:
            kind = typing.get_type_hints(kind, include_extras=True)[str(step)]
    return kind


def _field_at(kind: type[Config], path: Sequence[int | str]) -> FieldInfo:
    """The option at a path; for a place in a list the list."""
    group = group_of(_type_at(kind, path[:-1]))[0]
    return group.model_fields[str(path[-1])] if group else _field_at(kind, path[:-1])


def _take_out(kind: type[Config], values: Any, path: Sequence[int | str]) -> str:
    """Remove the option at a path, the whole list for a place in one; a required one gets a stand-in.

    Gives its dotted key, "" where there is nothing to do.
    """
    path = path[:-2] if path[-1] == "[key]" else path
    while isinstance(path[-1], int) and len(path) > 1:
        path = path[:-1]
    try:
        for step in path[:-1]:
            values = values[step]
        values.pop(path[-1], None)
        if _field_at(kind, path).is_required():
            values[path[-1]] = {} if _is_group(_type_at(kind, path)) else "stand-in"
    except (KeyError, IndexError, TypeError, AttributeError):
        return ""
    return _dotted(path)


def _is_inside(key: str, taken_out: Sequence[str]) -> bool:
    return any(key == taken or key.startswith((f"{taken}.", f"{taken}[")) for taken in taken_out)


def _dotted(path: Sequence[int | str]) -> str:
    """A path of keys and places in lists, as overrides have it: data.sources[0].path."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).removeprefix(".")


def _shown(value: Any) -> str:
    try:
        return excerpt(repr(value), SHOWN_CHARS)
    except ValueError:  # Python writes no number of thousands of digits
        return "a number of thousands of digits"
