"""Settings of a program: types, ranges and meanings, out of which follow its checks, its ``--help`` and a JSON schema.

A program's settings are a subclass of :class:`Settings`, one field each. The command line is checked before anything of
torch is imported. What holds text or a path leaves the command line before Hydra reads it, so that it arrives as typed.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, WithJsonSchema
from pydantic.fields import FieldInfo

from .errors import InputError
from .typed_text import TypedText

READY, UNKNOWN = "ready", "unknown"  # kinds of faults that come with their words; of the second the key is unknown
_NEEDS_RANGE = ("expected a number", "expected a whole number")
_SWITCHES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


Row = tuple[str, str, str, str]  # key, type, default, meaning of a setting


class Section(NamedTuple):
    """A table of settings under a title."""

    title: str
    rows: list[Row]
    headings: Row = ("setting", "type", "default", "meaning")


class Kind:
    """What a field holds, for ``--help``; ``text``: its value is taken as typed, not as Hydra's grammar reads it."""

    def __init__(self, name: str, text: bool = False):
        self.name, self.text = name, text


def _switch(value: Any) -> bool:
    known = _SWITCHES.get(str(value).strip().lower())
    if known is None:
        raise ValueError("expected true or false (also yes, no, on, off, 1, 0)")
    return known


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not (isinstance(value, int) or isinstance(value, float) and value.is_integer()):
        raise ValueError("expected a whole number")
    return int(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError("expected a number")
    return value


def _text(value: Any) -> str:
    if value is None or isinstance(value, (Mapping, list, tuple)):
        raise ValueError("expected one text")
    return str(value)


def _local(value: Any) -> Path:
    text = _text(value)
    if _ADDRESS.match(text):
        raise ValueError("addresses are not read; download it first, and name the file or folder")
    if "\0" in text:
        raise ValueError("expected a path, which has no NUL in it")
    return Path(text).expanduser() if re.match(r"~(/|$)", text) else Path(text)


def _place(value: Any) -> str:
    text = _text(value)
    if "\0" in text:
        raise ValueError("expected a path, which has no NUL in it")
    return str(Path(text).expanduser()) if re.match(r"~(/|$)", text) else text


def _places(value: Any) -> tuple[str, ...]:
    """One path or address, or several as "[a, b]"; a folder that is called so is one path."""
    if isinstance(value, str) and value.startswith("[") and not Path(value).exists():
        value = _list(value)
    return tuple(map(_place, value)) if isinstance(value, (list, tuple)) else (_place(value),)


def _words(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = _list(value) if value.startswith("[") else re.split(r"[,;]", value)
    value = value if isinstance(value, (list, tuple)) else [_text(value)]
    return tuple(word for item in value if (word := str(item).strip()))


def _list(text: str) -> list[Any]:
    """The items of "[a, b c]"; of a text that only begins so, itself."""
    try:
        items = yaml.BaseLoader(text).get_single_data()  # to which every scalar is a text
    except yaml.YAMLError:
        return [text]
    return items if isinstance(items, list) and all(isinstance(item, str) for item in items) else [text]


def _folders(value: Any) -> str | list[str] | dict[str, str]:
    """One path, several, or {name: path}; a folder that is called so is one path."""
    if isinstance(value, str) and value[:1] in "[{" and not Path(value).exists():
        try:
            read = yaml.BaseLoader(value).get_single_data()
        except yaml.YAMLError as error:
            raise ValueError("expected a path, [path, …] or {name: path, …}") from error
        value = read if isinstance(read, (list, dict)) else value
    if isinstance(value, Mapping):
        return {str(name): str(_local(path)) for name, path in value.items()}
    return [str(_local(path)) for path in value] if isinstance(value, (list, tuple)) else str(_local(value))


def _keys(value: Any) -> tuple[str, ...]:
    """Names of rows, stages or clips: a list, or one of them alone."""
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else (_text(value),)


Switch = Annotated[bool, BeforeValidator(_switch), Kind("true or false")]
Whole = Annotated[int, BeforeValidator(_whole), Kind("whole number")]
Number = Annotated[float, BeforeValidator(_number), Kind("number")]
Name = Annotated[str, BeforeValidator(_text), Kind("name")]
Text = Annotated[str, BeforeValidator(_text), Kind("text", text=True)]
LocalPath = Annotated[Path, BeforeValidator(_local), Kind("path", text=True)]
Place = Annotated[str, BeforeValidator(_place), Kind("path or address", text=True)]
Places = Annotated[tuple[str, ...], BeforeValidator(_places), Kind("path or address, or [a, b]", text=True)]
Words = Annotated[tuple[str, ...], BeforeValidator(_words), Kind("words: a, b or [a, b]", text=True)]
Folders = Annotated[Any, BeforeValidator(_folders), Kind("path, [path, …] or {name: path, …}", text=True)]
Keys = Annotated[tuple[str, ...], BeforeValidator(_keys), Kind("names: [a, b], or one")]
Positive = Annotated[Whole, Field(ge=1)]
Count = Annotated[Whole, Field(ge=0)]
Seed = Annotated[Whole, Field(ge=0, le=2**63 - 1)]
Seconds = Annotated[Number, Field(ge=1e-3)]
Share = Annotated[Number, Field(ge=0, le=1)]


def setting(meaning: str, default: Any = None) -> Any:
    """A field with its default and its meaning."""
    return Field(default=default, description=meaning)


def either(kinds: Sequence[Any]) -> Any:
    """A type of values that are of one of several kinds, the first that takes them."""
    words = " or ".join(map(type_words, kinds))
    checks = [TypeAdapter(kind) for kind in kinds]

    def found(value: Any) -> Any:
        for check in checks:
            try:
                return check.validate_python(value)
            except ValidationError:
                continue
        raise ValueError(f"expected a {words}")

    return Annotated[Any, BeforeValidator(found), Kind(words),
                     WithJsonSchema({"anyOf": [check.json_schema() for check in checks]})]


class Settings(BaseModel):
    """The settings of a program. A field's type gives the check, ``Field(description=…)`` the meaning."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), validate_default=True)
    GROUPS: ClassVar[Mapping[str, str]] = {}  # {further group of conf/: its meaning}; ``+group``: one that is added
    NESTED_TEXT: ClassVar[tuple[str, ...]] = ()  # paths inside groups, which are taken as typed too
    SWEPT_TEXT: ClassVar[tuple[str, ...]] = ()  # texts that may have several values, in an array or a multirun
    INTERPOLATED: ClassVar[tuple[str, ...]] = ()  # texts in which Hydra resolves ${…}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The settings of a composed config. All faults are said at once.

        Raises:
            InputError: a value is of another type or out of range, a key is not known, or two exclude each other.
        """
        further = list(cls.further_faults(values))
        try:
            found = cls.model_validate({key: None if value == "" and cls._optional(key) else value
                                        for key, value in values.items()})
        except ValidationError as error:
            raise InputError("; ".join([*map(cls._sentence, error.errors()), *further])) from None
        if further:
            raise InputError("; ".join(further))
        return found

    @classmethod
    def further_faults(cls, values: Mapping[str, Any]) -> Iterator[str]:
        """Sentences about what no single field shows. They are said beside the fields' own."""
        return iter(())

    @classmethod
    def _optional(cls, key: str) -> bool:
        field = cls.model_fields.get(key)
        return field is not None and field.default is None

    @classmethod
    def _sentence(cls, fault: Any) -> str:
        """A fault in words, with its key."""
        words, key, found = cls.words_of(fault), ".".join(map(str, fault["loc"])), fault.get("input")
        if fault["type"] in ("extra_forbidden", UNKNOWN):
            return f"there is no setting {key}; {words}"
        if not key:
            return words
        if words.startswith("is missing"):
            return f"{cls.given(key)} {words}"
        return f"{key}: {words}" if isinstance(found, Mapping) else f"{cls.given(key, found)}: {words}"

    @classmethod
    def given(cls, key: str, value: Any = "") -> str:
        """A setting as its user gives it."""
        return f"{key}={value}"

    @classmethod
    def words_of(cls, fault: Any) -> str:
        """What is wrong, without the key."""
        words = str(fault["msg"]).removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            model = model_at(cls, fault["loc"][:-1])
            return nearest(str(fault["loc"][-1]), names_of(model or cls))
        if fault["type"] == "missing":
            meaning = getattr(field_at(cls, fault["loc"]), "description", None)
            return f"is missing: {meaning}" if meaning else "is missing"
        if fault["type"] in (READY, UNKNOWN) or fault["type"] == "value_error" and words not in _NEEDS_RANGE:
            return words
        return _expected(field_at(cls, fault["loc"]), words)

    @classmethod
    def text_keys(cls) -> tuple[str, ...]:
        """Keys whose value is taken as typed."""
        kinds = {name: kind_of(field) for name, field in cls.model_fields.items()}
        return *(name for name, kind in kinds.items() if kind is not None and kind.text), *cls.NESTED_TEXT

    @classmethod
    def typed_text(cls, swept: bool = False) -> TypedText:
        """What keeps the texts of a command line. swept: whether it may give several values for a setting."""
        return TypedText(cls.text_keys(), cls.SWEPT_TEXT if swept else (), cls.INTERPOLATED)

    @classmethod
    def help_sections(cls, conf: Path, config_name: str, topic: str) -> Iterator[Section]:
        """Tables of ``--help``; topic: what ``--help=TOPIC`` names, or ""."""
        yield Section("", list(cls.help_rows()))

    @classmethod
    def help_rows(cls) -> Iterator[Row]:
        """(key, type, default, meaning) of every setting, those that several programs share at the end."""
        for name, field in sorted(cls.model_fields.items(), key=lambda item: item[0] not in cls.__annotations__):
            default = "must be given" if field.is_required() else shown(field.default)
            yield field.alias or name, type_words(field), default, field.description or ""


class Block(BaseModel):
    """Settings that belong together, under one key of a program's."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), validate_default=True)

    def plain(self) -> dict[str, Any]:
        """The given values, as a config has them."""
        return self.model_dump(mode="json", exclude_unset=True)


def names_of(model: type[BaseModel]) -> list[str]:
    """Keys of a class's fields."""
    return [field.alias or name for name, field in model.model_fields.items()]


def field_at(model: type[BaseModel], place: Sequence[str | int]) -> Any:
    """The field, or the type of an item, that a key leads to; None where it leads to none."""
    kind: Any = model
    for word in place:
        owner = model_in(kind)
        if owner is not None:
            names = {field.alias or name: field for name, field in owner.model_fields.items()}
            kind = names.get(str(word))
        else:
            items = (get_args(option)[-1] for option in options_of(kind) if get_origin(option) in (dict, list))
            kind = next(items, None)
        if kind is None:
            return None
    return kind


def model_at(model: type[BaseModel], place: Sequence[str | int]) -> type[BaseModel] | None:
    """The class whose fields a key's next words name."""
    return model_in(field_at(model, place)) if place else model


def model_in(kind: Any) -> type[BaseModel] | None:
    return next((option for option in options_of(kind) if isinstance(option, type) and issubclass(option, BaseModel)),
                None)


def items_model(kind: Any) -> type[BaseModel] | None:
    """The class of the blocks that a field holds by name or in a list."""
    items = [get_args(option)[-1] for option in options_of(kind) if get_origin(option) in (dict, list)]
    return next((model for item in items if (model := model_in(item)) is not None), None)


def options_of(kind: Any) -> list[Any]:
    """The types that a field or a type may have, without their annotations; None is left out."""
    kind = kind.annotation if isinstance(kind, FieldInfo) else kind
    if get_origin(kind) is Annotated:
        return options_of(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [option for item in get_args(kind) for option in options_of(item)]
    return [] if kind is type(None) else [kind]


def _marks(kind: Any) -> list[Any]:
    """What annotates a field or a type: its kind, its range; of an optional one those of its own type."""
    marks = [] if not isinstance(kind, FieldInfo) else list(kind.metadata)
    kind = kind.annotation if isinstance(kind, FieldInfo) else kind
    if get_origin(kind) is Annotated:
        for mark in kind.__metadata__:
            marks += mark.metadata if isinstance(mark, FieldInfo) else [mark]
        return marks + _marks(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        marks += [mark for item in get_args(kind) for mark in _marks(item)]
    return marks


def kind_of(kind: Any) -> Kind | None:
    """The :class:`Kind` of a field or a type, also of one that may be None."""
    return next((mark for mark in _marks(kind) if isinstance(mark, Kind)), None)


def _range_words(kind: Any) -> str:
    found = {name: getattr(mark, name) for mark in reversed(_marks(kind)) for name in ("ge", "gt", "le", "lt")
             if getattr(mark, name, None) is not None}
    if set(found) == {"ge", "le"}:
        return f" from {found['ge']} to {found['le']}"
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    told = [f"{words[name]} {found[name]}" for name in words if name in found]
    return f" {' and '.join(told)}" if told else ""


def choices_of(kind: Any) -> list[Any]:
    """The values of a field that has a few."""
    return [value for option in options_of(kind) if get_origin(option) is Literal for value in get_args(option)]


def type_words(kind: Any) -> str:
    """What a field or a type holds, in words."""
    if (known := kind_of(kind)) is not None:
        return known.name + _range_words(kind)
    if choices := choices_of(kind):
        return " | ".join(map(str, choices))
    option = next(iter(options_of(kind)), Any)
    if get_origin(option) is list:
        return f"list of {plural(type_words(get_args(option)[0]))}"
    if get_origin(option) is dict:
        return f"{{name: {type_words(get_args(option)[1])}, …}}"
    return "settings" if model_in(kind) is not None else "anything"


def plural(words: str) -> str:
    """Several of a kind: "whole numbers of at least 0"."""
    return re.sub(r"^(whole number|number|text|path|name|list)\b", r"\1s", words)


def _expected(kind: Any, words: str) -> str:
    if kind is None or type_words(kind) == "anything":
        return words
    if choices := choices_of(kind):
        return f"expected one of {', '.join(map(str, choices))}"
    if (model := model_in(kind)) is not None:
        return f"expected {{KEY: value, …}} with the keys {', '.join(names_of(model))}"
    return f"expected {'' if type_words(kind).startswith('{') else 'a '}{type_words(kind)}"


def shown(value: Any) -> str:
    """A value as a config has it."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(shown, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {shown(item)}" for key, item in value.items()) + "}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def nearest(key: str, known: Iterable[str]) -> str:
    """Words about a key that there is not: the nearest one that there is."""
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f"is {near[0]} meant?" if near else "--help lists them"


def unknown_key(key: str, known: Iterable[str]) -> str:
    """A sentence about a key that there is not, with the nearest one."""
    return f"there is no setting {key}; {nearest(key, known)}"
