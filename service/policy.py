"""What prompts may say: lists of terms in the file that HUVIDPO_POLICY_FILE names.

    [weapons]
    action = "block"                  # off, which it is unless given, tag or block
    deny = ["gun", "machine-gun"]     # however they are spelt, see spelling.py; never inside of other words
    allow = ["water gun"]             # what it holds does not count

The file is read again when it changes.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from service import metrics
from service.errors import ContentRefused
from service.files import Reread
from service.spelling import Term, Text

MAX_LISTS = 32  # each is a label of a metric
MAX_TERMS = 2000  # of one list
MAX_LETTERS = 100  # of one term


@dataclass(frozen=True)
class Verdict:
    """Names of the `lists` that a request is on; those that block it raise instead."""

    lists: tuple[str, ...]

    def told(self) -> dict[str, Any]:
        """As answers and rows of jobs have it."""
        return {"action": "tag" if self.lists else "ok", "lists": list(self.lists)}


def _term(value: Any) -> Term:
    if not isinstance(value, str) or len(value) > MAX_LETTERS:
        raise ValueError(f"{str(value)[:40]!r}: expected text of 1 to {MAX_LETTERS} letters")
    return Term(value)


_Term = Annotated[Term, BeforeValidator(_term)]


class _Terms(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)

    action: Literal["off", "tag", "block"] = "off"
    deny: list[_Term] = Field(max_length=MAX_TERMS)
    allow: list[_Term] = Field([], max_length=MAX_TERMS)


def _table(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError("expected a table with deny, and perhaps action and allow")
    return value


_Name = Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,40}$")]
_FILE = TypeAdapter(
    Annotated[dict[_Name, Annotated[_Terms, BeforeValidator(_table)]], Field(max_length=MAX_LISTS)]
)


class Policy:
    """The lists of a file, see files.Reread; with no file there is nothing to judge. Raises ValueError."""

    def __init__(self, file: str):
        self._lists = Reread("HUVIDPO_POLICY_FILE", file, _parse) if file else None

    def judge(self, fields: Mapping[str, str | None]) -> Verdict | None:
        """Of a request's texts, by name of the field; counted. None: there is no policy. Raises
        ContentRefused, which names field and list, for what is blocked.
        """
        if self._lists is None:
            return None
        texts = {field: Text(text) for field, text in fields.items() if text}
        found = dict[str, str]()  # list -> the first field that is on it
        lists = {name: one for name, one in self._lists.get().items() if one.action != "off"}
        for name, terms in lists.items():
            if field := next((field for field, text in texts.items() if _says(text, terms)), None):
                found[name] = field
                metrics.POLICY.labels("prompt", terms.action, name).inc()
        for name, field in found.items():
            if lists[name].action == "block":
                raise ContentRefused(
                    f"{field}: this server makes no clips of what it says (list {name}), say something else",
                    field,
                )
        if not found:
            metrics.POLICY.labels("prompt", "ok", "").inc()
        return Verdict(tuple(found))


def _says(text: Text, terms: _Terms) -> bool:
    """Whether it says a term that is denied, elsewhere than in one that is allowed."""
    denied = [span for term in terms.deny for span in term.spans(text)]
    allowed = [span for term in terms.allow for span in term.spans(text)] if denied else []
    return not all(
        any(where[0] == one[0] and one[1] <= where[1] and where[2] <= one[2] for one in allowed)
        for where in denied
    )


def _parse(file: Path) -> dict[str, _Terms]:
    try:
        return _FILE.validate_python(tomllib.loads(file.read_text(encoding="utf-8")))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"] if part != "[key]")
        raise ValueError(f"{file}: {where}: {first['msg'].removeprefix('Value error, ')}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: {error}") from None
