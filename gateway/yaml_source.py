"""YAML files that users write, with the place of every value: whatever is wrong in one is a list of mistakes, one line each.

Scalars follow the YAML 1.2 core rules, so `off`, `no` and `12:30` stay the text that was typed, and keys are always text.
What a file may contain is said by pydantic models (`Section`), which also give the JSON Schema and the reference pages; what
is wrong with it is said here, in words of our own.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import ClassVar, Final, Self, TypeAlias, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError, core_schema
from yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

MAX_FILE_BYTES: Final = 1_000_000
MAX_DEPTH: Final = 50
MAX_VALUES: Final = 100_000  # counted with aliases expanded, so that a few lines of aliases can't become gigabytes

Place: TypeAlias = tuple[str | int, ...]  # ("budgets", 0, "limit")


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing wrong in a file. `line` is 0 where the file could not be read at all; `key` is "" for the file as a whole."""

    file: str
    line: int
    key: str
    found: str
    expected: str

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        what = f"found {self.found}, expected {self.expected}"
        return f"{where}: {self.key}: {what}" if self.key else f"{where}: {what}"


class Mistakes(Exception):
    """A file is not used because of these; correct them and load it again."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes: tuple[Mistake, ...] = tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


# -- reading --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Node:
    """A value and the line it starts on. `shown` is how a mistake quotes it; `values` counts it and everything below."""

    line: int
    value: "Scalar | tuple[Node, ...] | dict[str, Entry]"
    shown: str
    values: int = 1

    def plain(self) -> object:
        """The value as pydantic takes it: dicts, lists and scalars."""
        if isinstance(self.value, dict):
            return {key: entry.node.plain() for key, entry in self.value.items()}
        if isinstance(self.value, tuple):
            return [node.plain() for node in self.value]
        return self.value


@dataclass(frozen=True, slots=True)
class Entry:
    """One key of a mapping, and its value."""

    line: int
    node: Node


Scalar: TypeAlias = str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Document:
    """A file that is a YAML mapping. `duplicates` are its keys that stand twice in one mapping."""

    file: str
    digest: str  # SHA-256 of its bytes, hex
    root: Node
    duplicates: tuple[Mistake, ...]

    def find(self, place: Place) -> tuple[int, Node | None]:
        """The line and the value at a place; where the file has no such value, the line of what should hold it."""
        line, node = self.root.line, self.root
        for step in place:
            if isinstance(node.value, dict) and isinstance(step, str) and step in node.value:
                line, node = node.value[step].line, node.value[step].node
            elif isinstance(node.value, tuple) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                line = node.line
            else:
                return line, None
        return line, node


def read_document(path: Path) -> Document:
    """Reads and composes a file. Mistakes: it is not there, not text, not YAML, not a mapping."""
    file = str(path)
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise Mistakes([Mistake(file, 0, "", "no such file", "a YAML file")]) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise Mistakes([Mistake(file, 0, "", f"a file that can't be read ({why})", "a YAML file")]) from None
    return parse_document(file, data)


def parse_document(file: str, data: bytes) -> Document:
    """Composes a file's bytes. Mistakes as `read_document`."""
    if len(data) > MAX_FILE_BYTES:
        raise Mistakes([Mistake(file, 0, "", "a larger file", f"at most {MAX_FILE_BYTES:,} bytes")])
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise Mistakes([Mistake(file, line, "", "bytes that are not UTF-8", "a text file in UTF-8")]) from None
    composer = _Composer(file)
    try:
        root = composer.document(yaml.parse(text, Loader=yaml.CSafeLoader))
    except yaml.MarkedYAMLError as error:
        raise Mistakes([_unparsable(file, text, error)]) from None
    except yaml.YAMLError as error:
        position = getattr(error, "position", 0)
        line = text.encode().count(b"\n", 0, position) + 1
        raise Mistakes([Mistake(file, line, "", "a control character", "printable text")]) from None
    except _Unusable as unusable:
        raise Mistakes([Mistake(file, unusable.line, "", unusable.found, unusable.expected)]) from None
    return Document(file, hashlib.sha256(data).hexdigest(), root, tuple(composer.duplicates))


def _unparsable(file: str, text: str, error: yaml.MarkedYAMLError) -> Mistake:
    mark = error.problem_mark or error.context_mark
    line = mark.line + 1 if mark else 1
    typed = text.splitlines()[line - 1 : line]
    if typed and "\t" in typed[0][: len(typed[0]) - len(typed[0].lstrip())]:
        return Mistake(file, line, "", "a tab", "spaces: YAML allows no tabs for indentation")
    why = " ".join(part for part in (error.context, error.problem) if part)
    return Mistake(file, line, "", f"text that is not YAML ({why})", "valid YAML")


class _Unusable(Exception):
    """Valid YAML, but not of a kind that is read on."""

    def __init__(self, line: int, found: str, expected: str) -> None:
        super().__init__(found)
        self.line, self.found, self.expected = line, found, expected


_PLAIN_TAGS: Final = frozenset({None, "!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:seq", "tag:yaml.org,2002:map"})
_INT = re.compile(r"[-+]?[0-9]{1,18}")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS: Final[Mapping[str, bool | None]] = {
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys(("null", "Null", "NULL", "~", ""), None),
}


class _Composer:
    """Events → nodes. Aliases share the anchor's node; only their count tells how large the file would be without them."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.duplicates: list[Mistake] = []
        self._anchors: dict[str, Node] = {}

    def document(self, events: Iterator[Event]) -> Node:
        root: Node | None = None
        for event in events:
            if isinstance(event, DocumentStartEvent):
                if root is not None:
                    raise _Unusable(_line(event), "a second document", "one YAML document in the file")
            elif isinstance(event, NodeEvent):
                root = self._node(event, events, ())
        if root is None or root.value is None:
            raise _Unusable(1, "an empty file", "a mapping of keys to values")
        if not isinstance(root.value, dict):
            raise _Unusable(root.line, root.shown, "a mapping of keys to values")
        return root

    def _node(self, event: Event, events: Iterator[Event], place: Place) -> Node:
        line = _line(event)
        if len(place) > MAX_DEPTH:
            raise _Unusable(line, f"more than {MAX_DEPTH} levels of nesting", "a flatter file")
        if isinstance(event, AliasEvent):
            node = self._anchors.get(str(event.anchor))
            # An anchor is known once its value is complete, so an alias inside its own value is unknown: no cycles.
            if node is None:
                raise _Unusable(line, f"*{event.anchor}", f"an alias of an anchor (&{event.anchor}) further up")
            return node
        assert isinstance(event, ScalarEvent | SequenceStartEvent | MappingStartEvent)
        if event.tag not in _PLAIN_TAGS:
            raise _Unusable(line, "a YAML tag", "no tags")
        if isinstance(event, ScalarEvent):
            node = _scalar(event)
        elif isinstance(event, SequenceStartEvent):
            node = self._list(line, events, place)
        else:
            node = self._mapping(line, events, place)
        if node.values > MAX_VALUES:
            raise _Unusable(line, f"more than {MAX_VALUES:,} values", "a smaller file")
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _list(self, line: int, events: Iterator[Event], place: Place) -> Node:
        items: list[Node] = []
        values = 1
        while not isinstance(event := next(events), SequenceEndEvent):
            items.append(self._node(event, events, (*place, len(items))))
            values += items[-1].values
        return Node(line, tuple(items), "a list", values)

    def _mapping(self, line: int, events: Iterator[Event], place: Place) -> Node:
        entries: dict[str, Entry] = {}
        values = 1
        while not isinstance(event := next(events), MappingEndEvent):
            if not isinstance(event, ScalarEvent):
                raise _Unusable(_line(event), "a key that is not text", "a name as the key")
            key, key_line = event.value, _line(event)
            node = self._node(next(events), events, (*place, key))
            values += node.values
            if key in entries:
                name = key_name((*place, key))
                expected = f"each key once (it also stands on line {entries[key].line})"
                self.duplicates.append(Mistake(self.file, key_line, name, "the key again", expected))
            else:
                entries[key] = Entry(key_line, node)
        return Node(line, entries, "a mapping", values)


def _line(event: Event) -> int:
    assert event.start_mark is not None
    return int(event.start_mark.line) + 1


def _scalar(event: ScalarEvent) -> Node:
    text, line = event.value, _line(event)
    plain = event.implicit[0]  # neither quoted nor tagged
    value: Scalar = text
    if plain and text in _WORDS:
        value = _WORDS[text]
    elif plain and _INT.fullmatch(text):
        value = int(text)
    elif plain and _FLOAT.fullmatch(text):
        value = float(text)
    elif plain and _NOT_FINITE.fullmatch(text):
        value = float(text.replace(".", ""))
    if value is None:
        return Node(line, None, "nothing")
    return Node(line, value, quoted(text) if isinstance(value, str) else text)


def quoted(text: str) -> str:
    """A text as a mistake shows it: on one line, not endless."""
    shown = text if len(text) <= 60 else text[:57] + "…"
    return json.dumps(shown, ensure_ascii=not shown.isprintable())


def key_name(place: Place) -> str:
    """`budgets[0].limit`, `models["gpt-4.1"].price`."""
    name = ""
    for step in place:
        if isinstance(step, int):
            name += f"[{step}]"
        elif re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", step):
            name += f".{step}" if name else step
        else:
            name += f"[{quoted(step)}]"
    return name


# -- what a file may contain ----------------------------------------------------------------------------------------------------


class Section(BaseModel):
    """A mapping with known keys. Every field has a description: editors and the reference pages show it.

    `stand_in` holds a sound value for each required key, for checks between keys to go on where one of them is wrong.
    """

    model_config = ConfigDict(extra="forbid", validate_default=True, frozen=True, arbitrary_types_allowed=True)
    stand_in: ClassVar[Mapping[str, object]] = {}


class Unexpected(ValueError):
    """A value is not of its kind. Without `expected`, the kind's own words; `found` replaces a value that must not be shown."""

    def __init__(self, expected: str | None = None, found: str | None = None) -> None:
        super().__init__(expected or "")
        self.expected, self.found = expected, found


@dataclass(frozen=True, slots=True, eq=False)  # compared by identity, which makes it hashable: annotations must be
class Reads:
    """A kind of value: how it is read, what is expected in a mistake, and its JSON Schema. Used as `Annotated[T, Reads(…)]`."""

    parse: Callable[[object], object]
    expected: str
    schema: Mapping[str, object] = field(default_factory=dict)

    def _validate(self, value: object) -> object:
        try:
            return self.parse(value)
        except Unexpected as unexpected:
            context = {"expected": unexpected.expected or self.expected, "found": unexpected.found}
            raise PydanticCustomError("unexpected", "expected {expected}", context) from None

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._validate)

    def __get_pydantic_json_schema__(self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, object]:
        return {**self.schema, "x-expected": self.expected}


SectionT = TypeVar("SectionT", bound=Section)


class Reader:
    """Checks a document against its root section and collects every mistake, those between keys included."""

    def __init__(self, document: Document, root: type[Section]) -> None:
        self.document = document
        self.warnings: list[str] = []
        self._root = root
        self._mistakes: dict[Place, Mistake] = {}
        try:
            root.model_validate(document.root.plain())
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                self._add_from_pydantic(detail)

    @property
    def mistakes(self) -> tuple[Mistake, ...]:
        """In the file's order."""
        return tuple(sorted([*self.document.duplicates, *self._mistakes.values()], key=lambda mistake: mistake.line))

    def finish(self) -> Self:
        """Raises the mistakes, if there are any."""
        if self.mistakes:
            raise Mistakes(self.mistakes)
        return self

    def sound(self, *place: str | int) -> bool:
        """Whether nothing at this place or below it is wrong."""
        return not any(known[: len(place)] == place for known in self._mistakes)

    def refused(self, *place: str | int) -> bool:
        """Whether what stands at this very place is of no use: not a section at all, or under a key that can't be."""
        return place in self._mistakes

    def names(self, *place: str | int) -> tuple[str, ...]:
        """The keys of the mapping at a place; none where there is no mapping."""
        _, node = self.document.find(place)
        return tuple(node.value) if node is not None and isinstance(node.value, dict) else ()

    def indexes(self, *place: str | int) -> range:
        """The indexes of the list at a place; none where there is no list."""
        _, node = self.document.find(place)
        return range(len(node.value) if node is not None and isinstance(node.value, tuple) else 0)

    def has(self, *place: str | int) -> bool:
        """Whether the file says something at this place."""
        _, node = self.document.find(place)
        return node is not None and node.value is not None

    def plain(self, *place: str | int) -> object:
        _, node = self.document.find(place)
        return None if node is None else node.plain()

    def part(self, section: type[SectionT], *place: str | int) -> SectionT:
        """The section at a place. What is wrong in it (and already noted) is as if it were absent."""
        data = self.plain(*place)
        given = dict(data) if isinstance(data, dict) else {}
        try:
            return section.model_validate(given)
        except ValidationError as error:
            for detail in error.errors(include_url=False):
                given.pop(str(detail["loc"][0]), None)
            return section.model_validate({**section.stand_in, **given})

    def refuse(self, place: Place, expected: str, found: str | None = None) -> None:
        """Notes a mistake, unless there is one at this very place already."""
        line, node = self.document.find(place)
        if found is None:
            found = node.shown if node else "nothing"
        mistake = Mistake(self.document.file, line, key_name(place), found, expected)
        self._mistakes.setdefault(place, mistake)

    def moved(self, place: Place, expected: str) -> None:
        """Says of a key that is unknown by now what to write instead."""
        if place in self._mistakes:
            self._mistakes[place] = replace(self._mistakes[place], expected=expected)

    def warn(self, place: Place, what: str) -> None:
        """Notes something that is allowed, but is seldom meant."""
        line, _ = self.document.find(place)
        self.warnings.append(f"{self.document.file}:{line}: {key_name(place)}: {what}")

    def _add_from_pydantic(self, detail: ErrorDetails) -> None:
        place = detail["loc"]
        context = detail.get("ctx", {})
        match detail["type"]:
            case "unexpected":
                found = context["found"]
                if place[-1] == "[key]" and self.document.find(place)[1] is None:  # pydantic's mark for what is wrong with a key
                    place = place[:-1]
                    found = quoted(str(place[-1]))
                # A kind that wraps a single value into a list reports a place inside it that the file does not have.
                while place and self.document.find(place)[1] is None:
                    place = place[:-1]
                self.refuse(place, context["expected"], found)
            case "extra_forbidden":
                self.refuse(place, _one_of(str(place[-1]), self._known_keys(place[:-1])), "an unknown key")
            case "missing":
                about = _schema_at(_schema_of(self._root), place).get("x-expected")
                self.refuse(place, f"{about} (the key is required)" if about else "this key: it is required")
            case "list_type" | "tuple_type":
                self.refuse(place, "a list")
            case _:  # model_type, dict_type
                self.refuse(place, "a mapping of keys to values")

    def _known_keys(self, place: Place) -> list[str]:
        properties = _schema_at(_schema_of(self._root), place).get("properties")
        return list(properties) if isinstance(properties, dict) else []


def did_you_mean(typed: str, known: Iterable[str]) -> str:
    """` (did you mean "limit"?)`, or nothing."""
    close = get_close_matches(typed, list(known), n=1)
    return f" (did you mean {quoted(close[0])}?)" if close else ""


def _one_of(typed: str, known: list[str]) -> str:
    return f"one of {', '.join(known)}{did_you_mean(typed, known)}"


@cache
def _schema_of(root: type[Section]) -> Mapping[str, object]:
    return root.model_json_schema()


def _schema_at(schema: Mapping[str, object], place: Place) -> Mapping[str, object]:
    """The part of a JSON Schema that describes a place; {} where none does."""
    definitions = schema.get("$defs")

    def resolve(part: object) -> Mapping[str, object]:
        """Follows references and takes the branch with keys of `X | null`, `X | "word"`."""
        if not isinstance(part, dict):
            return {}
        if "x-expected" in part:
            return part
        reference = part.get("$ref")
        if isinstance(reference, str) and isinstance(definitions, dict):
            return resolve(definitions[reference.rsplit("/", 1)[1]])
        branches = [resolve(branch) for branch in part.get("anyOf", ())]
        return next(
            (branch for branch in branches if branch.get("type") in ("object", "array")), branches[0] if branches else part
        )

    here = resolve(schema)
    for step in place:
        if isinstance(step, int):
            here = resolve(here.get("items"))
            continue
        properties = here.get("properties")
        if isinstance(properties, dict) and step in properties:
            here = resolve(properties[step])
        else:
            # A mapping with free keys; where these have a pattern, JSON Schema has another word for it.
            patterns = here.get("patternProperties")
            by_pattern = next(iter(patterns.values()), None) if isinstance(patterns, dict) else None
            here = resolve(by_pattern or here.get("additionalProperties"))
    return here
