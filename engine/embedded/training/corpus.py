"""Build the training corpus of stdlib-4m from the Python standard library's own docstrings (PSF licence).

    python corpus.py OUT

Writes to OUT: train.txt and valid.txt (records of signature and docstring, separated by blank lines), qa.jsonl
(question, answer, name, kind) and valid_names.json (names that training must not see). Deterministic for one CPython.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import random
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

SKIPPED = {
    "test", "tests", "idlelib", "turtledemo", "lib2to3", "site-packages", "__pycache__", "ensurepip", "tkinter",
    "distutils", "pydoc_data", "msilib", "encodings",
}  # fmt: skip
C_MODULES = (
    "builtins", "math", "itertools", "functools", "collections", "time", "os", "sys", "re", "json", "random",
    "struct", "zlib", "array", "bisect", "heapq", "operator", "string", "datetime", "io", "socket", "select",
    "signal", "threading", "_thread", "hashlib", "hmac", "secrets", "sqlite3", "csv", "binascii", "cmath", "gc",
    "weakref", "marshal", "errno", "unicodedata", "posix", "pwd", "grp", "fcntl", "mmap", "resource", "syslog",
    "termios", "zipfile", "bz2", "lzma", "decimal", "fractions", "statistics", "types", "atexit", "faulthandler",
    "tracemalloc", "readline",
)  # fmt: skip
LONGEST_DOC = 4000
HELD_OUT_SHARE = 20
"""One record in this many is held out."""


class Record(NamedTuple):
    """One documented name."""

    name: str
    kind: str
    signature: str
    doc: str

    def block(self) -> str:
        """The record as training text."""
        return f"{self.kind} {self.name}{self.signature}\n{self.doc}\n"


def clean(doc: str) -> str:
    """Dedent a docstring, keep printable ASCII, collapse blank lines."""
    doc = re.sub(r"[^\x09\x0a\x20-\x7e]", "", inspect.cleandoc(doc))
    return re.sub(r"\n{3,}", "\n\n", doc).strip()


def from_source(root: Path) -> Iterator[Record]:
    """Docstrings of every module, public class and public function below a folder."""
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if SKIPPED.intersection(relative.parts):
            continue
        try:
            tree = ast.parse(file.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        module = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        doc = ast.get_docstring(tree)
        if doc and len(doc) > 40:
            yield Record(module, "module", "", clean(doc))
        yield from _definitions(tree, module)


def _definitions(node: ast.Module | ast.ClassDef, prefix: str) -> Iterator[Record]:
    for child in node.body:
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        name, doc = f"{prefix}.{child.name}", ast.get_docstring(child)
        is_class = isinstance(child, ast.ClassDef)
        signature = "" if isinstance(child, ast.ClassDef) else f"({ast.unparse(child.args)})"
        if doc and len(doc) > 20 and not child.name.startswith("_"):
            yield Record(name, "class" if is_class else "function", signature, clean(doc))
        if isinstance(child, ast.ClassDef):
            yield from _definitions(child, name)


def from_runtime() -> Iterator[Record]:
    """Docstrings that exist only at run time: modules written in C."""
    for module_name in C_MODULES:
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue
        if module.__doc__:
            yield Record(module_name, "module", "", clean(module.__doc__))
        yield from _members(module)


def _members(module: ModuleType) -> Iterator[Record]:
    for short, value in sorted(vars(module).items()):
        doc = getattr(value, "__doc__", None)
        if short.startswith("_") or not isinstance(doc, str) or not callable(value):
            continue
        name = short if module.__name__ == "builtins" else f"{module.__name__}.{short}"
        is_class = inspect.isclass(value)
        if len(doc) > 20:
            yield Record(name, "class" if is_class else "function", "" if is_class else _signature(value), clean(doc))
        for attribute, member in sorted(vars(value).items()) if is_class else ():
            text = getattr(member, "__doc__", None)
            documented = isinstance(text, str) and len(text) >= 20 and callable(getattr(value, attribute, None))
            if documented and not attribute.startswith("_"):
                yield Record(f"{name}.{attribute}", "method", _signature(member), clean(str(text)))


def _signature(value: object) -> str:
    try:
        return str(inspect.signature(value))  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return ""


def answer(doc: str) -> str:
    """The first paragraph that says what a thing does: the second one where the first repeats the signature."""
    paragraphs = [part for part in doc.split("\n\n") if part.strip()]
    repeats = len(paragraphs) > 1 and re.match(r"^[\w.]+\(.*\)", paragraphs[0])
    return " ".join((paragraphs[1] if repeats else paragraphs[0]).split())[:300]


def question(record: Record) -> dict[str, str]:
    """A record as question and answer."""
    asked = (
        f"What is the Python module {record.name} for?"
        if record.kind == "module"
        else f"What does the Python {record.kind} {record.name} do?"
    )
    return {"name": record.name, "kind": record.kind, "question": asked, "answer": answer(record.doc)}


def main() -> None:
    """Write the corpus."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    records: dict[str, Record] = {}
    for record in (*from_runtime(), *from_source(Path(sysconfig.get_path("stdlib")))):
        if len(record.doc) <= LONGEST_DOC:
            records.setdefault(record.name, record)
    shuffled = list(records.values())
    random.Random(0).shuffle(shuffled)
    held_out = len(shuffled) // HELD_OUT_SHARE
    questions = [item for item in map(question, shuffled) if len(item["answer"]) > 20]
    (out / "qa.jsonl").write_text("".join(json.dumps(item) + "\n" for item in questions))
    (out / "valid.txt").write_text("\n".join(record.block() for record in shuffled[:held_out]))
    (out / "train.txt").write_text("\n".join(record.block() for record in shuffled[held_out:]))
    (out / "valid_names.json").write_text(json.dumps([record.name for record in shuffled[:held_out]]))
    print(f"{len(shuffled)} records, {held_out} held out, {len(questions)} questions")


if __name__ == "__main__":
    main()
