"""Units -> their rows. A reader goes on where it stopped, where the next unit lies ahead in the same file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import islice

from bothways.corpus.inputs import HUB_DATA, InputFile, Unit
from bothways.data.formats import text_rows
from bothways.data.parquet import opened, parquet_rows
from bothways.data.rows import Raw
from bothways.data.streams import Lines
from bothways.errors import DataError


class Reader:
    """The rows of units of some files, one file open at a time."""

    def __init__(self, files: tuple[InputFile, ...], most: int) -> None:
        """No line of more than `most` bytes is read."""
        self.files, self.most = files, most
        self._open = ExitStack()
        self._number = -1
        self._lines: Lines | None = None
        self._rows: Iterator[Raw] = iter(())
        self._at = -1

    def rows(self, unit: Unit) -> Iterator[Raw]:
        """As many rows as the unit has. Raises DataError if the file has become shorter."""
        file = self.files[unit.file]
        if self._number != unit.file:
            self.close()
            self._number = unit.file
        # Not known until the unit is read to its end.
        at, self._at = self._at, -1
        rows = self._of_text(file, unit) if file.columns is None else self._of_columns(file, unit, at)
        read = 0
        for raw in islice(rows, unit.rows):
            read += 1
            yield raw
        if read < unit.rows:
            raise DataError(
                f"{file.name}: it ends after row {unit.row + read:,}, but had {file.rows:,} when the job was begun. "
                "Restore it, or encode it into another folder."
            )
        self._at = unit.row + unit.rows

    def close(self) -> None:
        """Close the file."""
        self._open.close()
        self._lines, self._at, self._number = None, -1, -1

    def _of_text(self, file: InputFile, unit: Unit) -> Iterator[Raw]:
        if self._lines is None:
            self._lines = self._open.enter_context(closing(Lines(file.source, self.most)))
        self._lines.goto(unit.byte, unit.line)
        return text_rows(self._lines, file.suffix, file.header, unit.row)

    def _of_columns(self, file: InputFile, unit: Unit, at: int) -> Iterator[Raw]:
        if file.suffix == HUB_DATA and 0 <= at < unit.row:
            # What is streamed cannot be entered in the middle.
            next(islice(self._rows, unit.row - at - 1, None), None)
        elif at != unit.row:
            self._open.close()
            self._rows = self._from(file, unit.row)
        return self._rows

    def _from(self, file: InputFile, row: int) -> Iterator[Raw]:
        if file.hub is not None:
            return islice(file.hub.rows(file.columns), row, None)
        return parquet_rows(self._open.enter_context(opened(file.source)), file.columns, row)
