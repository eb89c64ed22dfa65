"""Bounds live in the types: pydantic dataclasses whose constructors raise the project's own errors.

    @raises(InvalidRequest)
    @dataclass(frozen=True, config=STRICT)
    class Options:
        steps: Annotated[int, Interval(ge=1, le=1000)] = 50

`Options(steps=0)` raises InvalidRequest: "steps: got 0, expected a whole number from 1 to 1000".
"""

import functools
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from huvidpo.errors import HuViDPOError, InvalidRequest

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""A bool is no number, a text no number, an unknown field a mistake; NaN and infinity are refused."""

Number = int | float
"""Kept as it came: 5000 is not written to a file as 5000.0."""

SHOWN = 80  # characters of a wrong value that a message repeats
_BOUNDS = {
    "ge": "of at least {}", "gt": "above {}", "le": "of at most {}", "lt": "below {}",
    "multiple_of": "a multiple of {}",
    "min_length": "with {} or more", "max_length": "of at most {} characters",
}  # fmt: skip
_NAMES = {
    int: "a whole number", float: "a number", str: "text", bool: "true or false", type(None): "none",
    Path: "a path",
}  # fmt: skip
_Class = TypeVar("_Class", bound=type)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("expected text that is not empty")
    return text


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("which is not valid Unicode") from error
    return text


Text = Annotated[str, AfterValidator(_unicode)]  # may be empty
NotBlank = Annotated[Text, AfterValidator(_not_blank)]


def raises(kind: type[HuViDPOError]) -> Callable[[_Class], _Class]:
    """For a pydantic dataclass: its constructor raises `kind`, in one sentence, not ValidationError."""

    def decorate(cls: _Class) -> _Class:
        construct = cls.__init__  # type: ignore[misc]

        @functools.wraps(construct)
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            try:
                construct(self, *args, **kwargs)
            except ValidationError as error:
                raise translated(error, kind, get_type_hints(cls, include_extras=True)) from None

        cls.__init__ = init  # type: ignore[misc]
        return cls

    return decorate


def check(name: str, value: Any, hint: Any, kind: type[HuViDPOError]) -> Any:
    """`value` as the type `hint` has it. Raises `kind`, calling the value `name`."""
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        raise translated(error, kind, {name: hint}, name) from None


@functools.cache
def _adapter(hint: Any) -> TypeAdapter:
    return TypeAdapter(hint, config=STRICT)


def translated(
    error: ValidationError, kind: type[HuViDPOError], hints: dict[str, Any], name: str = ""
) -> HuViDPOError:
    """The first mistake of `error` as `kind`: the field, what came, what is allowed."""
    first = error.errors(include_url=False)[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, HuViDPOError):  # of a check that says it all
        return cause
    name = name or str(first["loc"][0] if first["loc"] else "")
    if first["type"] == "missing":
        text = f"missing key {name!r}"
    elif first["type"] == "unexpected_keyword_argument":
        text = f"unknown key {name}, known: {', '.join(hints)}"
    else:
        want = f"expected {describe(hints[name])}" if cause is None else str(cause)
        text = f"{name}: got {_shown(first['input'])}, {want}"
    return InvalidRequest(text, name) if kind is InvalidRequest else kind(text)


def _shown(value: Any) -> str:
    """What came, without repeating long texts: they may be private."""
    if isinstance(value, str) and len(value) > SHOWN:
        return f"{len(value)} characters"
    came = repr(value)
    return came if len(came) <= SHOWN else f"{came[:SHOWN]}..."


def describe(hint: Any) -> str:
    """A type and its bounds in words: "a number above 0 and below 1, or none"."""
    if hint == Number:
        return _NAMES[float]
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        bounds = {
            key: bound
            for mark in hint.__metadata__
            for key in _BOUNDS
            if (bound := getattr(mark, key, None)) is not None
        }
        words = []
        if bounds.keys() >= {"ge", "le"}:
            words.append(f"from {bounds.pop('ge')} to {bounds.pop('le')}")
        words += [_BOUNDS[key].format(bound) for key, bound in bounds.items()]
        return f"{describe(parts[0])} {' and '.join(words)}".strip()
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin in (Union, types.UnionType):
        return ", or ".join(describe(part) for part in parts)
    if origin in (tuple, list):
        each = describe(parts[0])
        return f"a list of {each}" if origin is list or ... in parts else f"{len(parts)} of {each}"
    if origin is dict:
        return f"an object of {describe(parts[1])}"
    return _NAMES.get(hint, "a table")
