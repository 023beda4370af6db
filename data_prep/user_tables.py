"""Tables that users write with any program: more forms than `files.read_csv` takes."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import UserError, bullets
from common.files import shown

SEPARATORS = (",", ";", "\t")
HOW_TO_SAVE = 'save it as "CSV UTF-8" (in Excel a file type of its own)'


def read_table(path: Path, columns: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """The rows of a user's CSV as dicts with the keys of `columns`, each with the names that its
    column may have, the preferred first.

    Commas, semicolons and tabs separate; capitals, spaces around names and values, a byte order
    mark, Excel's line `sep=;` and empty rows are ignored. UserError for a file that cannot be read,
    for columns that are missing and for rows that are too long or too short.
    """
    lines = list(io.StringIO(_text(path), newline=""))  # all kinds of line ends
    stated = lines[0].strip().lower() if lines else ""
    said = stated[4:] if stated[:4] == "sep=" and len(stated) <= 5 else None
    start = 0 if said is None else 1
    separators = SEPARATORS if not said else (said,)
    choices = [_rows(path, lines[start:], separator) for separator in separators]
    header, *rows = max(choices, key=lambda choice: (_known(choice[0], columns), len(choice[0])))
    places = {}
    for key, names in columns.items():
        place = next((header.index(name) for name in names if name in header), None)
        if place is None:
            named = ", ".join(filter(None, header)) or "nothing"
            either = " or ".join(names)
            raise UserError(
                f"{shown(path)} has no column {either} in its first line; found: {named}."
            )
        if header.count(header[place]) > 1:
            raise UserError(f"{shown(path)} has two columns {header[place]}; remove one.")
        places[key] = place
    torn = [
        f"line {number} does not have {len(header)} values: {', '.join(row)}"
        for number, row in enumerate(rows, start + 2)
        if any(row) and (len(row) <= max(places.values()) or any(row[len(header) :]))
    ]
    if torn:
        raise UserError(f"{shown(path)}:{bullets(torn)}")
    return [{key: row[place] for key, place in places.items()} for row in rows if any(row)]


def _text(path: Path) -> str:
    """The text of a UTF-8 file, or of one whose byte order mark says that it is UTF-16."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{shown(path)} does not exist.") from None
    except OSError as error:
        raise UserError(f"{shown(path)} cannot be read ({error.strerror}).") from None
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        raise UserError(f"{shown(path)} is a workbook or an archive, not a CSV; {HOW_TO_SAVE}.")
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(
            f"{shown(path)} is not UTF-8 but in another encoding, such as Windows' cp1252 (line "
            f"{line}); {HOW_TO_SAVE}, or in Python with encoding='utf-8'."
        ) from None


def _rows(path: Path, lines: list[str], separator: str) -> list[list[str]]:
    """The rows at a separator, stripped; the header's names in small letters."""
    try:
        reader = csv.reader(lines, delimiter=separator, skipinitialspace=True)
        rows = [[value.strip() for value in row] for row in reader]
    except csv.Error as error:
        raise UserError(f"{shown(path)} is not a readable CSV file ({error}).") from None
    header, *rest = rows or [[]]
    return [[name.lower() for name in header], *rest]


def _known(header: list[str], columns: Mapping[str, Sequence[str]]) -> int:
    """How many of the columns the header names."""
    return sum(any(name in header for name in names) for names in columns.values())
