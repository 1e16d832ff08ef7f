"""Command line arguments that are plain text, before Hydra's grammar sees them."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence


def quote_text(arguments: Sequence[str], keys: Collection[str]) -> list[str]:
    """``key=value`` arguments whose key is in ``keys`` ⇒ the same with the value quoted for Hydra.

    A caption with a comma or a file name with a parenthesis is otherwise a syntax error there. What is null, empty,
    already quoted or a list stays as it is.
    """
    quoted = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and key in keys and value not in ("", "null") and value[0] not in "'\"[":
            # Hydra's grammar: backslashes count only where a quote follows them
            value = re.sub(r"(\\*)'", r"\1\1\\'", value)
            value = re.sub(r"(\\+)$", r"\1\1", value)
            argument = f"{key}='{value}'"
        quoted.append(argument)
    return quoted
