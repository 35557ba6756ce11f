"""Read a small YAML file into typed values and report every mistake in it with its line and key.

pydantic checks the values; its errors name a location such as `("params", "epochs", "choice", 1)`, and a table
from locations to YAML nodes gives the line. `yaml.safe_load` alone forgets lines, keeps the last of two equal
names, expands aliases without limit and takes `5e-5` for text.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NoReturn, Union, get_args, get_origin

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Tag,
    TypeAdapter,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError
from typing_extensions import TypedDict, is_typeddict
from yaml.constructor import SafeConstructor

from ikd_ray.errors import UsageError

MAX_BYTES = 2**16
MAX_DEPTH = 10
MAX_MISTAKES = 20  # shown

Location = tuple[str | int, ...]
"""Names and list indices that lead from the root to a value."""

_NULL = "tag:yaml.org,2002:null"
_CONVERTED = {f"tag:yaml.org,2002:{kind}" for kind in ("bool", "int", "float", "null")}
# YAML 1.1 requires a point and a signed exponent in a float, so it reads 5e-5 as text.
_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
_CONTAINERS = {"list_type": "a list, [...]", "dict_type": "a mapping, `name: value`"}


def mapping(fields: Mapping[str, Any]) -> Any:
    """Return the type of a mapping that may have these names, each with a type of its own, and no others.

    Values are checked strictly: `true` is no number and `3.0` no integer. The result is a dict in the file's order.
    """
    create: Any = TypedDict  # type checkers want literal names
    typed = create("Mapping", dict(fields), total=False)
    typed.__pydantic_config__ = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    return Annotated[typed, WrapValidator(_keep_order)]


def section(model: type[BaseModel], without: Collection[str] = ()) -> Any:
    """Return the type of a mapping that holds fields of a config model."""
    fields = {name: type_ for name, type_ in field_types(model).items() if name not in without}
    return Annotated[mapping(fields), AfterValidator(model.model_validate)]


def field_types(model: type[BaseModel]) -> dict[str, Any]:
    """Return the type of each field of a model, with its constraints, by public name."""
    types: dict[str, Any] = {}
    for name, info in model.model_fields.items():
        parts = (info.annotation, *info.metadata)
        types[info.alias or name] = Annotated[parts] if info.metadata else info.annotation
    return types


def distinct(type_: Any) -> Any:
    """Return the type of a list of different values, at least one; the result is a tuple."""

    def check(values: list[Any]) -> tuple[Any, ...]:
        repeated = {index for index, value in enumerate(values) if value in values[:index]}
        if repeated:
            raise mistakes_at({index: f"{values[index]} is given twice; keep one" for index in repeated})
        return tuple(values)

    return Annotated[list[type_], not_empty("write at least one value"), AfterValidator(check)]


def not_empty(advice: str) -> AfterValidator:
    """Return the validator of a list or mapping that must have an entry."""

    def check(values: Any) -> Any:
        if not values:
            raise ValueError(f"empty; {advice}")
        return values

    return AfterValidator(check)


def mistakes_at(messages: Mapping[str | int, str]) -> ValidationError:
    """Return an error for a validator to raise: messages by the name or list index below the validated value."""
    details = [
        InitErrorDetails(type=PydanticCustomError("mistake", message), loc=(part,), input=None)
        for part, message in messages.items()
    ]
    return ValidationError.from_exception_data("mistakes", details)


AS_LIST = BeforeValidator(lambda value: value if isinstance(value, (list, dict)) else [value])
"""Accept one value in place of a list."""


def quote(text: str) -> str:
    """Return text as a message quotes it: on one line and cut where it is long."""
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 60 else text[:57] + "..."


def _quote_node(node: yaml.Node) -> str:
    if not isinstance(node, yaml.ScalarNode):
        return "a list" if isinstance(node, yaml.SequenceNode) else "a mapping"
    if node.style is None:
        return quote(node.value) if node.value else "nothing"
    return quote(repr(node.value))


def _keep_order(given: Any, validate: ValidatorFunctionWrapHandler) -> dict[str, Any]:
    valid = validate(given)
    return {name: valid[name] for name in given}


class YamlFile:
    """A small YAML file: its text, its content as plain data, and the mistakes noted so far."""

    def __init__(self, path: Path, kind: str, example: str, text_fields: Collection[str] = ()) -> None:
        """Read the file.

        Args:
            path: the file.
            kind: what messages call such a file: `search space`.
            example: a minimal content, for the message about an empty file.
            text_fields: top-level names whose scalars are text as written, so that `no` is a word and `007` keeps
                its zeros.

        Raises:
            UsageError: the file cannot be read, is no YAML mapping, or uses tags, anchors or aliases.
        """
        self.path = path
        self.text = _read_text(path, kind)
        self._mistakes: list[tuple[int, str]] = []
        self._removed: set[Location] = set()  # locations of values that are wrong
        self._nodes: dict[Location, yaml.Node] = {}
        self._name_lines: dict[Location, int] = {}
        self.data: dict[str, Any] = self._convert(self._compose(example), (), text_fields)

    def mistake(self, location: Location, message: str, line: int | None = None) -> None:
        """Note a mistake at a location of the file, by default with the line of its value."""
        key = ".".join(quote(part) for part in location if isinstance(part, str) and part)
        self.note(line or self._nodes[self._locate(location)].start_mark.line + 1, key, message)

    def note(self, line: int, key: str, message: str) -> None:
        """Note a mistake on a line of the file."""
        self._mistakes.append((line, f"{key}: {message}"))

    @property
    def has_mistakes(self) -> bool:
        """True if a mistake was noted."""
        return bool(self._mistakes)

    def raise_mistakes(self) -> None:
        """Raise one UsageError with a line for each mistake noted, in the file's order, if there is any."""
        if self._mistakes:
            ordered = sorted(self._mistakes, key=lambda mistake: mistake[0])
            lines = [f"{self.path}:{line}: {message}" for line, message in ordered[:MAX_MISTAKES]]
            if len(ordered) > MAX_MISTAKES:
                lines.append(
                    f"{self.path}: and {len(ordered) - MAX_MISTAKES} more mistakes; correct these first"
                )
            raise UsageError("\n".join(lines))

    def validate(self, schema: Any, context: Any = None) -> dict[str, Any]:
        """Return the valid part of the content, in the file's order, and note what is wrong with the rest.

        What is wrong is removed and the rest validated again, so that the caller can check what remains. An error
        at or above a removed value is its consequence and not reported.

        Args:
            schema: the type of the whole file, made by `mapping`.
            context: what the schema's validators read as the context of a validation.
        """
        adapter, data = _adapter(schema), copy.deepcopy(self.data)
        while True:
            try:
                return adapter.validate_python(data, context=context)
            except ValidationError as error:
                wrong = {self._locate(detail["loc"]): detail for detail in error.errors()}
            consequences = {location[:end] for location in self._removed for end in range(len(location))}
            for location in sorted(wrong.keys() - consequences):
                self._note(location, wrong[location], schema)
            for location in sorted(wrong, reverse=True):  # the last item of a list first
                self._remove(data, location)

    def _locate(self, location: Location) -> Location:
        """Return a pydantic location without the tags of unions and other parts that are not in the file."""
        found: Location = ()
        for part in location:
            if (*found, part) in self._nodes:
                found = (*found, part)
        return found

    def _note(self, location: Location, detail: ErrorDetails, schema: Any) -> None:
        node, kind, message = self._nodes[location], detail["type"], detail["msg"]
        if kind == "extra_forbidden":
            advice = nearest(str(location[-1]), _names(schema, detail["loc"][:-1]))
            self.mistake(location, f"unknown name; {advice}", self._name_lines[location])
            return
        if kind in _CONTAINERS:
            message = f"got {_quote_node(node)}; write {_CONTAINERS[kind]}"
        elif kind != "mistake":
            own = kind == "value_error"
            message = str(detail["ctx"]["error"]) if own else message[0].lower() + message[1:]
            if isinstance(node, yaml.ScalarNode):
                message = f"{message} (got {_quote_node(node)})"
            elif not own:
                message = f"got {_quote_node(node)}; write one value"
        self.mistake(location, message)

    def _remove(self, data: Any, location: Location) -> None:
        self._removed.add(location)
        *above, last = location
        for part in above:
            data = data[part]
        del data[last]
        if isinstance(data, list):  # the items behind it move up
            for index in range(int(last), len(data)):
                at = (*above, index)
                self._nodes[at] = self._nodes.pop((*above, index + 1))

    def _convert(self, node: yaml.Node, location: Location, text_fields: Collection[str]) -> Any:
        """Return a node as plain data; note the lines of values and names, and names that are wrong."""
        self._nodes[location] = node
        is_text = bool(location) and location[0] in text_fields
        if isinstance(node, yaml.SequenceNode):
            items = enumerate(node.value)
            return [self._convert(item, (*location, index), text_fields) for index, item in items]
        if isinstance(node, yaml.ScalarNode):
            return _convert_scalar(node, is_text)
        values: dict[str, Any] = {}
        for name_node, value in node.value:
            line, name = name_node.start_mark.line + 1, name_node.value
            at = (*location, name if isinstance(name, str) else _quote_node(name_node))
            problem = ""
            if not isinstance(name, str):
                problem = f"got {_quote_node(name_node)}; write one name"
            elif not name.isprintable():
                problem = "the name contains a control character; remove it"
            elif name in values:
                problem = f"given twice, the first on line {self._name_lines[at]}; keep one"
            if problem:
                self.mistake(at, problem, line)
                self._removed.add(at)
            else:
                self._name_lines[at] = line
                values[name] = self._convert(value, at, text_fields)
        return values

    def _compose(self, example: str) -> yaml.MappingNode:
        loader = None
        try:
            loader = _PlainLoader(self)
            root = loader.get_single_node()
        except yaml.reader.ReaderError as error:
            line = self.text.count("\n", 0, error.position) + 1
            self._raise_not_yaml(line, f"character {error.character:#x} is not allowed")
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            self._raise_not_yaml(line, f"{error.context or ''} {error.problem}".strip())
        except (ValueError, OverflowError) as error:  # "\UFFFFFFFF": PyYAML hands any number to chr()
            if isinstance(error, UsageError):
                raise
            self._raise_not_yaml(loader.line + 1 if loader else 1, "an escape that names no character")
        self.raise_mistakes()
        if root is None:
            raise UsageError(f"{self.path}:1: the file: empty; write {example}")
        if not isinstance(root, yaml.MappingNode):
            line, got = root.start_mark.line + 1, _quote_node(root)
            raise UsageError(f"{self.path}:{line}: the file: got {got}; write a mapping, `name: value`")
        return root

    def _raise_not_yaml(self, line: int, problem: str) -> NoReturn:
        raise UsageError(f"{self.path}:{line}: not YAML: {quote(problem)}; correct the line") from None


class _PlainLoader(yaml.SafeLoader):
    """A loader that notes aliases, anchors and tags, and refuses deep nesting, which would exhaust the stack."""

    def __init__(self, file: YamlFile) -> None:
        super().__init__(file.text)
        self._file, self._depth = file, 0

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent):
            self._file.note(line, quote(f"*{event.anchor}"), "an alias; write the value out")
            self.get_event()
            return yaml.ScalarNode(_NULL, "")
        if event.anchor:
            self._file.note(line, quote(f"&{event.anchor}"), "an anchor; write the value without it")
        if event.tag:
            self._file.note(line, quote(event.tag), "a tag; write the value without it")
        event.anchor = event.tag = None
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._file.note(line, "the file", f"nested deeper than {MAX_DEPTH} levels; write it flatter")
            self._file.raise_mistakes()
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node


@cache
def _adapter(schema: Any) -> TypeAdapter[dict[str, Any]]:
    return TypeAdapter(schema)


def _read_text(path: Path, kind: str) -> str:
    # Reading a pipe would block until somebody writes to it, and a device may have no end.
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise UsageError(f"{path}: no ordinary file; give the path of a {kind} file")
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UsageError(f"{path}: {reason}; give the path of a {kind} file") from None
    if len(raw) > MAX_BYTES:
        raise UsageError(f"{path}: over 64 KiB; a {kind} is a few lines of YAML")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: not UTF-8; save the file as UTF-8 text") from None


def _convert_scalar(node: yaml.ScalarNode, is_text: bool) -> Any:
    """Return what `yaml.safe_load` makes of a scalar, except that dates stay text and 5e-5 is a float."""
    if is_text and node.tag != _NULL:
        return node.value
    if node.style is None and _EXPONENT.fullmatch(node.value):
        return float(node.value)
    if node.tag not in _CONVERTED:
        return node.value
    try:
        return SafeConstructor().construct_object(node)
    except ValueError:  # YAML's pattern takes `0x_` for an integer
        return node.value


def _names(schema: Any, location: Location) -> list[str]:
    """Return the names that a schema allows in the mapping at a pydantic location."""
    for part in location:
        schema = _without_validators(schema)
        if is_typeddict(schema):
            schema = schema.__annotations__[part]
        elif get_origin(schema) is Union:
            schema = next(option for option in get_args(schema) if Tag(str(part)) in option.__metadata__)
        else:  # a dict or a list
            schema = get_args(schema)[-1]
    return list(_without_validators(schema).__annotations__)


def _without_validators(schema: Any) -> Any:
    return get_args(schema)[0] if get_origin(schema) is Annotated else schema


def nearest(name: str, names: Collection[str]) -> str:
    """Return advice for a name that is none of the known ones."""
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(names)}"
