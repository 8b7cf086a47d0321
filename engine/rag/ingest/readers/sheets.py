"""Spreadsheets: XLSX through openpyxl, row by row; XLS, XLSB and ODS through calamine. One page per sheet.

Invariant: memory does not depend on what a sheet says about its size: rows are streamed, empty tails end the sheet, and
formulas are shown by the values that were saved with them.
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

from lathe.engine.rag.ingest.archive import check_parts, open_archive
from lathe.engine.rag.ingest.errors import DocumentError, Encrypted
from lathe.engine.rag.ingest.readers.base import Notes, Source, library, table_pieces
from lathe.engine.rag.values import Piece

_EMPTY_RUN = 2_000
"""Empty rows in a row after which a sheet is taken to have ended."""
_MAX_CELLS = 1_000
"""Cells of one row that are read."""


def read_xlsx(source: Source, notes: Notes) -> Iterator[Piece]:
    """Yield the rows of every visible sheet."""
    openpyxl = library("openpyxl")
    check_parts(open_archive(source.file))
    source.file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about styles and extensions that carry no text
        try:
            book = openpyxl.load_workbook(source.file, read_only=True, data_only=True, keep_links=False)
        except MemoryError:
            raise
        except Exception as error:
            raise DocumentError(f"the workbook cannot be opened: {error or type(error).__name__}") from error
        notes.parser = f"openpyxl {openpyxl.__version__}"
        for name in ("title", "creator", "subject", "keywords", "modified"):
            notes.say(name, getattr(book.properties, name, None))
        notes.title = notes.metadata.get("title", "")
        for number, sheet in enumerate(book.worksheets, 1):
            if sheet.sheet_state != "visible":
                notes.flags["hidden"] += 1
                continue
            sheet.reset_dimensions()  # a file may claim a million rows
            try:
                yield from _sheet(sheet.title, number, sheet.iter_rows(values_only=True, max_col=_MAX_CELLS))
            except (MemoryError, RecursionError):
                raise
            except Exception as error:  # noqa: BLE001
                notes.skip(f"sheet {sheet.title}: {str(error)[:200] or type(error).__name__}")
        book.close()


def read_calamine(source: Source, notes: Notes) -> Iterator[Piece]:
    """Yield the rows of every visible sheet of an older or foreign workbook."""
    calamine = library("python_calamine")
    try:
        book = calamine.CalamineWorkbook.from_filelike(source.file)
    except MemoryError:
        raise
    except calamine.PasswordError as error:
        raise Encrypted("the workbook needs a password", hint="remove the password and add it again") from error
    except Exception as error:
        raise DocumentError(f"the workbook cannot be opened: {error or type(error).__name__}") from error
    notes.parser = f"python-calamine {getattr(calamine, '__version__', '')}".strip()
    for number, about in enumerate(book.sheets_metadata, 1):
        if about.visible != calamine.SheetVisibleEnum.Visible:
            notes.flags["hidden"] += 1
            continue
        try:
            rows = book.get_sheet_by_name(about.name).iter_rows()
            yield from _sheet(about.name, number, rows)
        except (MemoryError, RecursionError):
            raise
        except Exception as error:  # noqa: BLE001
            notes.skip(f"sheet {about.name}: {str(error)[:200] or type(error).__name__}")


def _sheet(title: str, number: int, rows: Iterable[Any]) -> Iterator[Piece]:
    yield from table_pieces(_filled(rows), page=number, heading_path=(title,))


def _filled(rows: Iterable[Any]) -> Iterator[list[str]]:
    """Rows with something in them."""
    empty = 0
    for row in rows:
        cells = [_shown(cell) for cell in row[:_MAX_CELLS]]
        if any(cells):
            empty = 0
            yield cells
        elif (empty := empty + 1) > _EMPTY_RUN:
            return


def _shown(value: object) -> str:
    """A cell as people read it."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case float():
            return f"{value:.15g}"
        case datetime.datetime() if value.time() == datetime.time():
            return value.date().isoformat()
        case datetime.datetime():
            return value.isoformat(" ", "seconds")
        case _:
            return str(value).strip()
