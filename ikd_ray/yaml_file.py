"""A small YAML file as nodes that know their lines, and every mistake found in it.

`yaml.safe_load` forgets where a value stood, keeps the last of two equal keys and expands aliases without
limit. Here the nodes themselves are read, so that a mistake is named with its line and nothing is dropped.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn, get_args

import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from yaml.constructor import SafeConstructor

from ikd_ray.config import first_error
from ikd_ray.errors import UsageError

MAX_BYTES = 2**16
MAX_DEPTH = 10
MAX_MISTAKES = 20  # shown

_NULL = "tag:yaml.org,2002:null"
_CONVERTED = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null")}
# YAML 1.1 wants a point and a signed exponent in a float, and calls 5e-5 a string.
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


class Knob:
    """What a value may be: a pydantic type, checked strictly (`true` is no number, `3.0` no int)."""

    def __init__(self, type_: Any, *constraints: Any, default: Any = None):
        self.type = type_
        self.default = default
        parts = (type_, *constraints)
        annotated: Any = Annotated[parts] if constraints else type_
        self._adapter = TypeAdapter(annotated, config=ConfigDict(strict=True, allow_inf_nan=False))

    @property
    def takes_floats(self) -> bool:
        return float in (self.type, *get_args(self.type))

    def validate(self, value: Any) -> Any:
        """The value as the type holds it (an int as a float in a float's place), or a ValidationError."""
        return self._adapter.validate_python(value)


def knobs(model: type[BaseModel]) -> dict[str, Knob]:
    """A config model's fields by their public names."""
    return {
        info.alias or name: Knob(info.annotation, *info.metadata, default=info.default)
        for name, info in model.model_fields.items()
    }


def shown(node: yaml.Node) -> str:
    """A node as a message quotes it: on one line, cut where it is long."""
    if not isinstance(node, yaml.ScalarNode):
        return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
    if not node.value and node.style is None:
        return "nothing"
    return one_line(node.value) if node.style is None else _cut(repr(node.value))


def one_line(text: str) -> str:
    """Text as a message quotes it."""
    return _cut(text if text.isprintable() else repr(text))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."


def _scalar(node: yaml.ScalarNode, knob: Knob) -> Any:
    """What `yaml.safe_load` makes of a scalar, but dates stay text and 5e-5 is a float where one belongs.

    Where text belongs it is what the file has, so that `no` is a word and `007` keeps its zeros.
    """
    if knob.type is str and node.tag != _NULL:
        return node.value
    if node.style is None and knob.takes_floats and _EXPONENT.fullmatch(node.value):
        return float(node.value)
    if node.tag not in _CONVERTED:
        return node.value
    try:
        return SafeConstructor().construct_object(node)
    except ValueError:  # `0x_` passes for an int by YAML's pattern and is none
        return node.value


class YamlFile:
    """A small YAML file: its text, its root node, and the mistakes noted so far."""

    def __init__(self, path: Path, kind: str, least: str):
        """
        Args:
            kind: what the file is, as messages name it: `search space`.
            least: what would do in place of an empty one.

        Raises:
            UsageError: the file cannot be read, is not YAML, or uses tags, anchors or aliases.
        """
        self.path = path
        self._kind, self._least = kind, least
        self._mistakes: list[tuple[int, str]] = []
        self.text = self._read()
        self._refuse_what_is_not_plain()
        self.root = self._compose()

    def mistake(self, at: yaml.Node | int, key: str, message: str) -> None:
        """Notes a mistake; `at` is the node, or the line, that is wrong."""
        line = at if isinstance(at, int) else at.start_mark.line + 1
        self._mistakes.append((line, f"{key}: {message}"))

    def raise_mistakes(self) -> None:
        """Raises one UsageError with a line for each mistake noted, in the file's order, if there is any."""
        if self._mistakes:
            ordered = sorted(self._mistakes, key=lambda mistake: mistake[0])
            lines = [f"{self.path}:{line}: {message}" for line, message in ordered[:MAX_MISTAKES]]
            if len(ordered) > MAX_MISTAKES:
                lines.append(
                    f"{self.path}: and {len(ordered) - MAX_MISTAKES} mistakes more; mend these first"
                )
            raise UsageError("\n".join(lines))

    def mapping(
        self, node: yaml.Node, key: str, names: Collection[str] | None = None
    ) -> dict[str, yaml.Node]:
        """{name: value node} of a mapping; what is not a mapping, not in `names` or given twice is noted.

        Without `names` any name will do, as it is written: `0`, `yes`.
        """
        if not isinstance(node, yaml.MappingNode):
            self.mistake(node, key or "the file", f"got {shown(node)}; write a mapping, `name: value`")
            return {}
        entries: dict[str, yaml.Node] = {}
        for name_node, value in node.value:
            name = name_node.value if isinstance(name_node, yaml.ScalarNode) else None
            dotted = ".".join(filter(None, (key, shown(name_node) if name is None else one_line(name))))
            if name is None and names is None:
                self.mistake(name_node, dotted, f"got {shown(name_node)}; write one name")
            elif names is not None and name not in names:
                self.mistake(name_node, dotted, f"unknown name; {_nearest(name, names)}")
            elif name in entries:
                first = entries[name].start_mark.line + 1
                self.mistake(name_node, dotted, f"given twice, the first on line {first}; keep one")
            else:
                assert name is not None  # it was noted
                entries[name] = value
        return entries

    def values(self, nodes: Iterable[yaml.Node], key: str, knob: Knob) -> list[tuple[Any, yaml.Node]]:
        """(value, its node) of those nodes that hold a value the knob can take; the others are noted."""
        return [(value, node) for node in nodes for value in self._valid(node, key, knob)]

    def value(self, node: yaml.Node, key: str, knob: Knob, otherwise: Any) -> Any:
        """The node's value, or `otherwise` where it is no value the knob can take, which is noted."""
        return next(self._valid(node, key, knob), otherwise)

    def _valid(self, node: yaml.Node, key: str, knob: Knob) -> Iterator[Any]:
        if not isinstance(node, yaml.ScalarNode):
            self.mistake(node, key, f"got {shown(node)}; write one value")
            return
        try:
            yield knob.validate(_scalar(node, knob))
        except ValidationError as error:
            self.mistake(node, key, f"{first_error(error)[1]} (got {shown(node)})")

    def _read(self) -> str:
        self._refuse_what_is_no_file()
        try:
            with self.path.open("rb") as file:
                raw = file.read(MAX_BYTES + 1)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise UsageError(f"{self.path}: {reason}; give the path of a {self._kind} file") from None
        if len(raw) > MAX_BYTES:
            raise UsageError(f"{self.path}: over 64 KiB; a {self._kind} is a few lines of YAML")
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            line = raw.count(b"\n", 0, error.start) + 1
            raise UsageError(f"{self.path}:{line}: not UTF-8; save the file as UTF-8 text") from None

    def _refuse_what_is_no_file(self) -> None:
        """A pipe would be waited for until somebody writes to it; a device may have no end."""
        if os.path.exists(self.path) and not (os.path.isfile(self.path) or os.path.isdir(self.path)):
            raise UsageError(f"{self.path}: no ordinary file; give the path of a {self._kind} file")

    def _refuse_what_is_not_plain(self) -> None:
        """Walks the events first: composing deep nesting would exhaust the stack, and aliases can explode."""
        depth = 0
        for event, line in self._events():
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if isinstance(event, yaml.AliasEvent):
                self.mistake(line, one_line(f"*{event.anchor}"), "an alias; write the value out")
            elif isinstance(event, yaml.NodeEvent) and event.anchor:
                self.mistake(line, one_line(f"&{event.anchor}"), "an anchor; write the value without it")
            if isinstance(event, (yaml.ScalarEvent, yaml.CollectionStartEvent)) and event.tag:
                self.mistake(line, one_line(event.tag), "a tag; write the value without it")
            if depth > MAX_DEPTH:
                self.mistake(
                    line, "the file", f"nested deeper than {MAX_DEPTH} levels; a {self._kind} needs 5"
                )
                break
        self.raise_mistakes()

    def _events(self) -> Iterator[tuple[yaml.Event, int]]:
        line = 1
        try:
            loader = yaml.SafeLoader(self.text)
            while loader.check_event():
                event = loader.get_event()
                line = event.start_mark.line + 1
                yield event, line
        except yaml.reader.ReaderError as error:
            line = self.text.count("\n", 0, error.position) + 1
            self._not_yaml(line, f"character {error.character:#x} is not allowed")
        except yaml.MarkedYAMLError as error:
            self._not_yaml(_line_of(error), str(error.problem))
        except (ValueError, OverflowError):  # "\UFFFFFFFF": the scanner hands any number to chr()
            self._not_yaml(line, "an escape that names no character")

    def _compose(self) -> yaml.Node:
        try:
            root = yaml.compose(self.text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            self._not_yaml(_line_of(error), f"{error.context} {error.problem}")
        if root is None:
            raise UsageError(f"{self.path}:1: the file: empty; write {self._least}")
        return root

    def _not_yaml(self, line: int, problem: str) -> NoReturn:
        raise UsageError(f"{self.path}:{line}: not YAML: {one_line(problem)}; mend the line") from None


def _line_of(error: yaml.MarkedYAMLError) -> int:
    assert error.problem_mark is not None  # every one of PyYAML's own has it
    return error.problem_mark.line + 1


def _nearest(name: str | None, names: Collection[str]) -> str:
    close = difflib.get_close_matches(name or "", names, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
