"""Tables that other people wrote: cells with the line they stand in, so that a complaint can name it."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ..errors import InputError


def read_cells(path: str | os.PathLike, delimiter: str = ",") -> Iterator[tuple[int, list[str]]]:
    """A CSV in UTF-8, with or without a byte order mark and with any line ends ⇒ (line, its cells, without the space
    around them) per row; a row over several lines counts as its last. Empty lines are passed over.

    Raises InputError naming the file, and the line where there is one: not there, not UTF-8, quotes that don't close.
    """
    line = 0
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=delimiter, strict=True, skipinitialspace=True)
            for cells in reader:
                line = reader.line_num
                if cells:
                    yield line, [cell.strip() for cell in cells]
    except FileNotFoundError:
        raise InputError(f"{path} doesn't exist; name a table of clips") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}, line {_first_foreign_line(path)}: not UTF-8; save the file as UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}, after line {line}: no row of a CSV ({error}); texts that hold quotes or line breaks "
                         "need quotes around them, and quotes inside them doubled") from error
    except OSError as error:
        raise InputError(f"{path} can't be read ({error})") from error


def read_table(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, str]]]:
    """A table with a header ⇒ ("line 7", {column: text}) per row: .csv, .tsv (tabs), or .json (a list of objects).

    Raises InputError as :func:`read_cells`, and where a row has not as many cells as the header, or a column stands
    twice.
    """
    if Path(path).suffix.lower() == ".json":
        yield from _read_json(path)
        return
    rows = read_cells(path, "\t" if Path(path).suffix.lower() in (".tsv", ".tab") else ",")
    header_line, header = next(rows, (0, []))
    if len(set(header)) < len(header) or not all(header):
        raise InputError(f"{path}, line {header_line}: the header {header} names a column twice, or none")
    for line, cells in rows:
        if len(cells) != len(header):
            raise InputError(f"{path}, line {line}: {len(cells)} cells, the header has {len(header)}; quote texts that "
                             "hold commas")
        yield f"line {line}", dict(zip(header, cells))


def _read_json(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, str]]]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path} doesn't exist; name a table of clips") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}, line {_first_foreign_line(path)}: not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}, line {error.lineno}: no JSON ({error.msg})") from error
    except (OSError, RecursionError) as error:
        raise InputError(f"{path} can't be read ({error})") from error
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise InputError(f"{path} holds no list of objects; expected [{{\"file\": …, \"caption\": …}}, …]")
    for number, entry in enumerate(content, 1):
        yield f"entry {number}", {key: "" if value is None else str(value).strip() for key, value in entry.items()}


def _first_foreign_line(path: str | os.PathLike) -> int:
    """The number of the first line that is not UTF-8: no character of UTF-8 has a line feed's byte in it."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1
