"""Text of a command line that arrives as typed: it leaves the line before Hydra reads it, or is quoted for it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


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
