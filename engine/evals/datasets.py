"""Files of cases: JSON lines, JSON, CSV, SQuAD, ARC, GSM8K, TruthfulQA and plain text, as rows with places.

Each format gives rows with conventional names: `question`, `choices` with `answer` (an index), `context` with
`answers`. Invariant: a row that cannot be read becomes a `Bad` that says where and why; the rest are still read.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from lathe.engine.errors import DataError, MissingError, UsageError
from lathe.engine.evals.values import DataFormat, Fields

MAX_BYTES = 1024**3
MAX_ROW_BYTES = 16 * 1024**2
_SUFFIXES: dict[str, DataFormat] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".txt": "text", ".raw": "text",
}  # fmt: skip
_ADAPTER_CHOICE = re.compile(r"Answer(\d+): (.*?)(?= Answer\d+: |\n\nAnswer format|$)", re.DOTALL)
_FINAL_NUMBER = re.compile(r"####\s*(.+)\s*$")


class Row(msgspec.Struct, frozen=True):
    """The variables of one case."""

    fields: Fields
    place: str


class Bad(msgspec.Struct, frozen=True):
    """A case that cannot be used."""

    place: str
    problem: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"


Rows = Iterator[Row | Bad]


def read_rows(path: Path, format: DataFormat | None, characters: int = 2000) -> list[Row | Bad]:  # noqa: A002
    """Read a file of cases.

    Raises:
        MissingError: there is no such file. UsageError: its format cannot be told. DataError: it is no such file.
    """
    chosen = format or _SUFFIXES.get(path.suffix.lower())
    if chosen is None:
        raise UsageError(f"{path}: what format is it?", hint="give `format:` (jsonl, csv, squad, arc, ...)")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES // 1024**3} GiB", hint="split it")
        raw = path.read_bytes()
    except FileNotFoundError:
        raise MissingError(f"{path}: no such file of cases") from None
    if chosen == "text":
        return list(_text(path, raw, characters))
    return list(_READERS[chosen](path, raw.removeprefix(b"\xef\xbb\xbf")))


def _jsonl(path: Path, raw: bytes) -> Rows:
    for number, line in enumerate(raw.split(b"\n"), 1):
        if line.strip():
            yield _json_row(f"{path}:{number}", line)


def _json_row(place: str, text: bytes) -> Row | Bad:
    if len(text) > MAX_ROW_BYTES:
        return Bad(place, f"larger than {MAX_ROW_BYTES} bytes")
    try:
        value = msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Bad(place, f"not valid JSON: {error}")
    if not isinstance(value, dict):
        return Bad(place, f"a case is a JSON object, this is {_kind(value)}")
    return Row(value, place)


def _json(path: Path, raw: bytes) -> Rows:
    document = _document(path, raw)
    rows = document if isinstance(document, list) else None
    if isinstance(document, dict):
        rows = next((value for value in document.values() if isinstance(value, list)), None)
    if rows is None:
        raise DataError(f"{path}: holds no list of cases")
    for number, value in enumerate(rows):
        place = f"{path}[{number}]"
        yield Row(value, place) if isinstance(value, dict) else Bad(place, f"a case is an object, not {_kind(value)}")


def _csv(path: Path, raw: bytes) -> Rows:
    try:
        reader = csv.DictReader(io.StringIO(raw.decode("utf-8"), newline=""), strict=True)
        for row in reader:
            place = f"{path}:{reader.line_num}"
            if None in row or None in row.values():
                yield Bad(place, "has another number of columns than the header")
            else:
                yield Row(dict(row), place)
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not valid CSV: {error}") from error


def _squad(path: Path, raw: bytes) -> Rows:
    document = _document(path, raw)
    try:
        for article in document["data"]:
            for paragraph in article["paragraphs"]:
                for question in paragraph["qas"]:
                    answers = list(dict.fromkeys(answer["text"] for answer in question.get("answers", ())))
                    if question.get("is_impossible"):
                        answers = [""]  # as SQuAD 2.0's own evaluation has it: to say nothing is right
                    fields = {
                        "id": str(question["id"]), "title": article.get("title", ""), "context": paragraph["context"],
                        "question": question["question"], "answers": answers,
                    }  # fmt: skip
                    place = f"{path}#{fields['id']}"
                    yield Row(fields, place) if answers else Bad(place, "has no answer")
    except (KeyError, TypeError) as error:
        raise DataError(f"{path}: not in SQuAD format: {error!r}") from error


def _arc(path: Path, raw: bytes) -> Rows:
    """The three shapes ARC is passed around in: the original's, the hub's, and LLM-Adapters' instructions."""
    for row in _jsonl(path, raw) if path.suffix == ".jsonl" else _json(path, raw):
        if isinstance(row, Bad):
            yield row
            continue
        try:
            yield Row(_arc_fields(row.fields), row.place)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            yield Bad(row.place, f"not in ARC format: {error!r}")


def _arc_fields(fields: Fields) -> Fields:
    if "instruction" in fields:
        question, _, rest = fields["instruction"].partition("\n\n")
        choices = [text.strip() for _, text in _ADAPTER_CHOICE.findall(rest)]
        answer = int(fields["answer"].removeprefix("answer")) - 1
        asked = question.removeprefix("Please choose the correct answer to the question: ")
    else:
        nested = isinstance(fields["question"], dict)
        asked = fields["question"]["stem"] if nested else fields["question"]
        listed = fields["question"]["choices"] if nested else fields["choices"]
        if isinstance(listed, dict):
            choices, labels = list(listed["text"]), list(listed["label"])
        else:
            choices, labels = [choice["text"] for choice in listed], [choice["label"] for choice in listed]
        answer = labels.index(fields["answerKey"])
    if not 0 <= answer < len(choices):
        raise ValueError(f"answer {answer + 1} of {len(choices)} choices")
    return {"question": asked, "choices": choices, "answer": answer} | ({"id": fields["id"]} if "id" in fields else {})


def _gsm8k(path: Path, raw: bytes) -> Rows:
    for row in _jsonl(path, raw):
        if isinstance(row, Bad):
            yield row
            continue
        solution = row.fields.get("answer")
        final = _FINAL_NUMBER.search(solution) if isinstance(solution, str) else None
        if final is None:
            yield Bad(row.place, "`answer` has no final number after ####")
            continue
        number = final.group(1).replace(",", "").strip()
        yield Row({"question": row.fields.get("question"), "solution": solution, "answer": number}, row.place)


def _truthfulqa(path: Path, raw: bytes) -> Rows:
    """One true answer (the best) among the false ones, as TruthfulQA's MC1."""
    for row in _csv(path, raw):
        if isinstance(row, Bad):
            yield row
            continue
        try:
            best = row.fields["Best Answer"].strip()
            wrong = _listed(row.fields["Incorrect Answers"])
            fields = {
                "question": row.fields["Question"].strip(), "choices": [best, *wrong], "answer": 0,
                "correct": _listed(row.fields["Correct Answers"]), "incorrect": wrong,
                "category": row.fields.get("Category", ""),
            }  # fmt: skip
        except KeyError as error:
            raise DataError(f"{path}: not TruthfulQA's table: no column {error}") from error
        yield Row(fields, row.place) if best and wrong else Bad(row.place, "lacks a right or a wrong answer")


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(";") if part.strip()]


def _text(path: Path, raw: bytes, characters: int) -> Rows:
    """Paragraphs, joined until a case is long enough."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}") from error
    line = start = 1
    gathered = ""
    for part in re.split(r"(\n[ \t]*\n)", text):
        gathered += part
        line += part.count("\n")
        if len(gathered) >= characters and part.strip():
            yield Row({"text": gathered}, f"{path}:{start}")
            gathered, start = "", line
    if gathered.strip():
        yield Row({"text": gathered}, f"{path}:{start}")


def _document(path: Path, raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from error


def _kind(value: object) -> str:
    return {list: "a list", str: "text", type(None): "null"}.get(type(value), f"a {type(value).__name__}")


_READERS: dict[DataFormat, Callable[[Path, bytes], Rows]] = {
    "jsonl": _jsonl, "json": _json, "csv": _csv, "squad": _squad, "arc": _arc, "gsm8k": _gsm8k,
    "truthfulqa": _truthfulqa,
}  # fmt: skip
