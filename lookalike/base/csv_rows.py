"""A reader for CSV files written by hand; its errors name the line."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from lookalike.base.errors import LookalikeError


def rows(table: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield each row's place, such as "labels.csv, line 7", and its fields by column name.

    table    a UTF-8 file, with or without a byte order mark; its first line names the columns.
    columns  the required columns; others are allowed. The last holds free text, where a comma needs quotation marks.

    Raises LookalikeError for another encoding, missing columns, a row of the wrong length, or an unclosed quotation.
    """
    content = table.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise LookalikeError(
            f"{table}, line {line}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        named = [column.strip() for column in reader.fieldnames or []]
        reader.fieldnames = named
        if not set(columns) <= set(named):
            raise LookalikeError(f"{table}: the first line must name the columns {','.join(columns)}; it names {named}")
        for row in reader:
            where = f"{table}, line {reader.line_num}"
            if None in row or None in row.values():
                raise LookalikeError(
                    f"{where}: {len(named)} fields are expected; a {columns[-1]} with a comma needs quotation marks"
                )
            yield where, row
    except csv.Error as error:
        raise LookalikeError(f"{table}: not a readable CSV ({error}); look for an unclosed quotation mark") from None
