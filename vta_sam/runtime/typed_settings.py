"""Settings of a program: types, ranges and meanings, out of which follow its checks, its ``--help`` and a JSON schema.

A program's settings are a subclass of :class:`Settings`, one field each. The command line is checked before anything of
torch is imported. What holds text or a path leaves the command line before Hydra reads it, so that it arrives as typed.
"""

from __future__ import annotations

import difflib
import math
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from .errors import InputError

_NEEDS_RANGE = ("expected a number", "expected a whole number")
_SWITCHES = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


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


def _words(value: Any) -> tuple[str, ...]:
    if isinstance(value, str):
        value = _list(value) if value.startswith("[") else re.split(r"[,;]", value)
    if not isinstance(value, (list, tuple)):
        value = [_text(value)]
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
Words = Annotated[tuple[str, ...], BeforeValidator(_words), Kind("words: a, b or [a, b]", text=True)]
Folders = Annotated[Any, BeforeValidator(_folders), Kind("path, [path, …] or {name: path, …}", text=True)]
Keys = Annotated[tuple[str, ...], BeforeValidator(_keys), Kind("names: [a, b], or one")]


class Settings(BaseModel):
    """The settings of a program. A field's type gives the check, ``Field(description=…)`` the meaning."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), validate_default=True)
    SWEPT_TEXT: ClassVar[tuple[str, ...]] = ()  # texts that may have several values, in an array or a multirun
    INTERPOLATED: ClassVar[tuple[str, ...]] = ()  # texts in which Hydra resolves ${…}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Self:
        """The settings of a composed config. All faults are said at once.

        Raises:
            InputError: a value is of another type or out of range, a key is not known, or two exclude each other.
        """
        try:
            return cls.model_validate({key: None if value == "" and cls._optional(key) else value
                                       for key, value in values.items()})
        except ValidationError as error:
            raise InputError("; ".join(cls._sentence(fault) for fault in error.errors())) from None

    @classmethod
    def _optional(cls, key: str) -> bool:
        field = cls.model_fields.get(key)
        return field is not None and field.default is None

    @classmethod
    def _sentence(cls, fault: Any) -> str:
        key, found, words = ".".join(map(str, fault["loc"])), fault.get("input"), str(fault["msg"])
        words = words.removeprefix("Value error, ")
        if fault["type"] == "extra_forbidden":
            return unknown_key(key, cls.model_fields)
        if not key:
            return words
        if fault["type"] != "value_error" or words in _NEEDS_RANGE:
            words = _expected(cls.model_fields.get(key), words)
        return f"{key}={found}: {words}"

    @classmethod
    def text_keys(cls) -> tuple[str, ...]:
        """Keys whose value is taken as typed."""
        kinds = {name: _kind(field) for name, field in cls.model_fields.items()}
        return tuple(name for name, kind in kinds.items() if kind is not None and kind.text)

    @classmethod
    def typed_text(cls, swept: bool = False) -> TypedText:
        """What keeps the texts of a command line. swept: whether it may give several values for a setting."""
        return TypedText(cls.text_keys(), cls.SWEPT_TEXT if swept else (), cls.INTERPOLATED)

    @classmethod
    def help_rows(cls) -> Iterator[tuple[str, str, str, str]]:
        """(key, type, default, meaning) of every setting, those that several programs share at the end."""
        own = cls.__annotations__
        for name, field in sorted(cls.model_fields.items(), key=lambda item: item[0] not in own):
            default = "must be given" if field.is_required() else _shown(field.default)
            yield name, _type_words(field), default, field.description or ""


def _kind(field: FieldInfo) -> Kind | None:
    """The kind of a field, also of one that may be None."""
    found = [item for item in field.metadata if isinstance(item, Kind)]
    for option in get_args(field.annotation):
        found += [item for item in getattr(option, "__metadata__", ()) if isinstance(item, Kind)]
    return found[0] if found else None


def _bounds(field: FieldInfo) -> tuple[Any, Any]:
    """(least, most); of an optional field those of its own type."""
    items = list(field.metadata)
    for option in get_args(field.annotation):
        for item in getattr(option, "__metadata__", ()):
            items += item.metadata if isinstance(item, FieldInfo) else [item]
    least = next((item.ge for item in items if hasattr(item, "ge")), None)
    return least, next((item.le for item in items if hasattr(item, "le")), None)


def _range_words(field: FieldInfo) -> str:
    least, most = _bounds(field)
    return "" if least is None and most is None else f" of at least {least}" if most is None else \
        f" of at most {most}" if least is None else f" from {least} to {most}"


def _choices(field: FieldInfo) -> list[Any]:
    found = list(get_args(field.annotation))
    found += [choice for option in get_args(field.annotation) for choice in get_args(option)]
    return [choice for choice in found if isinstance(choice, (str, int)) and not isinstance(choice, type)]


def _type_words(field: FieldInfo) -> str:
    kind = _kind(field)
    if kind is not None:
        return kind.name + _range_words(field)
    choices = _choices(field)
    return " | ".join(map(str, choices)) if choices else "mapping"


def _expected(field: FieldInfo | None, words: str) -> str:
    if field is None:
        return words
    if _choices(field) and _kind(field) is None:
        return f"expected one of {', '.join(map(str, _choices(field)))}"
    return f"expected a {_type_words(field)}"


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else \
        "[]" if value == () else str(value)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """A sentence about a key that there is not, with the nearest one that there is."""
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f"there is no setting {key}; " + (f"is {near[0]} meant?" if near else "--help lists them")


class TypedText:
    """Values of a command line that Hydra must not read: each is replaced by a word, and put back where it arrives.

    Args:
        keys: whose values are texts.
        swept: of those, the keys whose values may be several, parted by commas (a sweep).
        interpolated: of those, the keys in which Hydra resolves ``${…}``.
    """

    def __init__(self, keys: Iterable[str], swept: Iterable[str] = (), interpolated: Iterable[str] = ()):
        self.keys, self.swept, self.interpolated = set(keys), set(swept), set(interpolated)
        self._mark = f"text{secrets.token_hex(6)}x"
        self._typed: list[str] = []

    def taken(self, arguments: Sequence[str]) -> list[str]:
        """The command line with words in place of texts; null and empty values stay."""
        return [self._without_text(argument) for argument in arguments]

    def _without_text(self, argument: str) -> str:
        key, equals, value = argument.partition("=")
        name = key.lstrip("+")
        if not equals or name not in self.keys or value in ("", "null") or name in self.interpolated and "${" in value:
            return argument
        values = _parted(value) if name in self.swept else [value]
        return f"{key}={','.join('null' if item == 'null' else self._word(item) for item in values)}"

    def _word(self, value: str) -> str:
        self._typed.append(value)
        return f"{self._mark}{len(self._typed) - 1}x"

    def put_back(self, value: Any) -> Any:
        """A composed config, or a word of a command line, with the texts as they were typed."""
        if isinstance(value, Mapping):
            return {self.put_back(key): self.put_back(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.put_back(item) for item in value]
        if isinstance(value, str):
            return re.sub(rf"{self._mark}(\d+)x", lambda found: self._typed[int(found[1])], value)
        return value


def quoted(text: str) -> str:
    """A text in quotes, as Hydra reads it: backslashes count only where a quote follows them."""
    text = re.sub(r"(\\*)'", r"\1\1\\'", text)
    text = re.sub(r"(\\+)$", r"\1\1", text)
    return f"'{text}'"


def _unquoted(text: str) -> str:
    """The inverse of :func:`quoted`; a text that isn't wholly in quotes stays as it is."""
    whole = re.fullmatch(r"""'((?:[^'\\]|\\.)*)'|"((?:[^"\\]|\\.)*)\"""", text.strip(), re.DOTALL)
    if whole is None:
        return text
    inside, quote = (whole[1], "'") if whole[1] is not None else (whole[2], '"')
    inside = re.sub(rf"(\\+){quote}", lambda found: found[1][:len(found[1]) // 2] + quote, inside)
    return re.sub(r"(\\+)$", lambda found: found[1][:len(found[1]) // 2], inside)


def _parted(value: str) -> list[str]:
    """A sweep's values: parted by commas outside quotes; one that is quoted as a whole is what stands inside."""
    items = re.findall(r"""(?:'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^,])+""", value, re.DOTALL)
    return [_unquoted(item) for item in items] or [value]
