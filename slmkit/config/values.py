"""The kinds of values that options take, each with its range and unit, and their names in messages and help.

Numbers are strict: text, true and fractions are refused where a whole number is expected, and so are nan, infinity and
what is larger than any sensible setting. Text such as `1e-4` is read as a number where one is expected, since YAML 1.1
takes it for text.

Example:
    class Config(BaseModel):
        steps: Count | None = Field(None, description="optimizer steps of the run")
    expected(Count)        # "a whole number, at least 1"
"""

import types
import typing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import AfterValidator, AllowInfNan, BaseModel, BeforeValidator, StringConstraints
from pydantic.types import Strict

LIMIT = 10**9  # larger numbers are mistakes, whatever the option
MAX_NAME_BYTES = 255  # of a file or folder
MAX_SEED = 2**63 - 1  # what torch takes


@dataclass(frozen=True)
class Takes:
    """What an option takes, in words, where the type alone does not say it."""

    words: str


@dataclass(frozen=True)
class Unit:
    """Unit of a number, in the plural."""

    name: str


def _from_text(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return value


def _with_short_names(path: str) -> str:
    """Looking for a file of a longer name is an error of its own to the system, in whatever looks."""
    if any(len(part.encode()) > MAX_NAME_BYTES for part in path.split("/")):
        raise ValueError("a name is too long")
    return path


Flag = Annotated[bool, Strict()]
Text = Annotated[str, Strict(), MaxLen(4096)]
Name = Annotated[str, Strict(), MinLen(1), MaxLen(4096), Takes("a name")]
PathText = Annotated[
    str,
    StringConstraints(strict=True, pattern=r"^[^\x00]+$", max_length=4096),
    AfterValidator(_with_short_names),
    Takes("a path"),
]

Count = Annotated[int, Strict(), Ge(1), Le(LIMIT)]
Natural = Annotated[int, Strict(), Ge(0), Le(LIMIT)]
Group = Annotated[int, Strict(), Ge(0), Le(1024)]  # each token of a group has a head
Epochs = Annotated[int, Strict(), Ge(1), Le(100_000)]  # each is planned at the start
Workers = Annotated[int, Strict(), Ge(0), Le(1024)]
Seed = Annotated[int, Strict(), Ge(0), Le(MAX_SEED)]

Number = Annotated[float, Strict(), AllowInfNan(False), BeforeValidator(_from_text)]
Positive = Annotated[Number, Gt(0), Le(LIMIT)]
NotNegative = Annotated[Number, Ge(0), Le(LIMIT)]
Share = Annotated[Number, Ge(0), Le(1)]
ShareBelowOne = Annotated[Number, Ge(0), Lt(1)]
Seconds = Annotated[Positive, Unit("seconds")]
SecondsOrZero = Annotated[NotNegative, Unit("seconds")]

OR_NULL = ", or null"
KINDS = {
    **{bool: "true or false", str: "text", int: "a whole number", float: "a number", dict: "a mapping of names"},
    type(None): "null",
}


def group_of(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """(the group of options in this type, or None; whether it is a list or mapping of them).

    A group may also be null.
    """
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        groups = [group_of(argument) for argument in typing.get_args(annotation)]
        return next((found for found in groups if found[0] is not None), (None, False))
    if typing.get_origin(annotation) is Annotated:
        return group_of(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (tuple, dict):
        items = typing.get_args(annotation)
        return group_of(items[0 if typing.get_origin(annotation) is tuple else -1])[0], True
    is_group = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return (annotation if is_group else None), False


def expected(annotation: Any, *, with_limit: bool = False) -> str:
    """What an option of this type takes, in words; `with_limit` names a bound that only keeps out absurd numbers."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        inner = next(argument for argument in arguments if argument is not type(None))
        return expected(inner, with_limit=with_limit) + OR_NULL
    if origin is Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is Annotated:
        return _constrained(arguments[0], arguments[1:], with_limit)
    if origin is tuple:
        is_group = group_of(annotation)[0] is not None
        return "a list of groups of options" if is_group else f"a list, each {expected(arguments[0])}"
    if group_of(annotation)[0] is not None:
        return "groups of options by name" if origin is dict else "a group of options"
    return KINDS[origin or annotation]


def _constrained(kind: Any, marks: tuple[Any, ...], with_limit: bool) -> str:
    """The words of an annotated type: its own, or the name of the kind, then range and unit."""
    for mark in reversed(marks):
        if isinstance(mark, Takes):
            return mark.words
    low, high = "", ""
    for mark in marks:
        if isinstance(mark, Ge):
            low = f"{mark.ge}"
        elif isinstance(mark, Gt):
            low = f"more than {mark.gt}"
        elif isinstance(mark, Lt):
            high = f"below {mark.lt}"
        elif isinstance(mark, Le) and (with_limit or mark.le not in (LIMIT, MAX_SEED)):
            high = f"{mark.le}"
    units = [f" {mark.name}" for mark in marks if isinstance(mark, Unit)]
    words = expected(kind) if not units else KINDS[kind].replace("number", f"number of{units[0]}")
    if low.startswith("more"):
        return f"{words}, {low}" + (f", at most {high}" if high else "")
    if low:
        return f"{words}, {low} to {high}" if high else f"{words}, at least {low}"
    return words
