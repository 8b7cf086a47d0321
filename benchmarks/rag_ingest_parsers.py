"""How fast documents become clean text: each format alone, a folder end to end, the second run, and the side costs.

    python benchmarks/rag_ingest_parsers.py [--documents DIR] [--files 2000]

`end to end` is what an ingest waits for: walk, read, parse and clean in the limited child, and the way back to the
engine. `process per file` is what the long-lived child saves. Writes Markdown tables to standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from lathe.engine.errors import LatheError
from lathe.engine.rag.ingest.clean import clean
from lathe.engine.rag.ingest.document import parse
from lathe.engine.rag.ingest.duplicates import Duplicates
from lathe.engine.rag.ingest.findings import passage_flags
from lathe.engine.rag.ingest.folder import read_folder
from lathe.engine.rag.ingest.readers.base import Notes, Source
from lathe.engine.rag.ingest.values import Cleaning, KnownFile, Unchanged
from lathe.engine.rag.values import ParsedDocument

WORDS = """
the of and to in a is that for it as was with be by on not model vector index passage query retrieval answer
system document store search embed token layer memory result value method table section chapter figure data
"""


def by_format(folder: Path) -> None:
    """Each real document parsed and cleaned in this process, grouped by format; the first of each format warms up."""
    seconds: dict[str, list[float]] = defaultdict(list)
    volume: dict[str, list[int]] = defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        for attempt in range(2):
            began = time.perf_counter()
            try:
                with path.open("rb") as file:
                    notes = Notes()
                    document = clean(parse(Source(path.name, file, path.stat().st_size), notes, str(path)), Cleaning())
            except LatheError:
                break
            if attempt:
                kind = document.media_type.rpartition(".")[2].rpartition("/")[2]
                seconds[kind].append(time.perf_counter() - began)
                volume[kind].append(len(document.text))
    print("| format | files | median ms | slowest ms | characters/s |\n|---|---|---|---|---|")
    for kind in sorted(seconds):
        times = seconds[kind]
        rate = sum(volume[kind]) / sum(times)
        print(
            f"| {kind} | {len(times)} | {1000 * statistics.median(times):.1f} | {1000 * max(times):.0f} | {rate:,.0f} |"
        )


def write_corpus(folder: Path, files: int) -> int:
    """Markdown files of about 6,000 characters; returns their bytes."""
    draw, words = random.Random(1), WORDS.split()
    total = 0
    for number in range(files):
        parts = [f"# Document {number}"]
        for section in range(5):
            parts.append(f"## Section {section}")
            parts += [" ".join(draw.choices(words, k=70)).capitalize() + "." for _ in range(3)]
        text = "\n\n".join(parts)
        target = folder / f"{number // 200:03}" / f"{number:06}.md"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        total += len(text)
    return total


def processor_seconds() -> float:
    """Of this process and of the children that have ended: on a busy machine it says more than wall time."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


async def end_to_end(folder: Path, log: Path) -> dict[str, KnownFile]:
    """The first run over a folder."""
    known = {}
    began, cpu = time.perf_counter(), processor_seconds()
    characters = 0
    async for item in read_folder([folder], {}, log_path=log):
        if isinstance(item, ParsedDocument):
            known[item.path] = KnownFile(item.sha256, item.file_bytes, item.modified_ns)
            characters += len(item.text)
    took = time.perf_counter() - began
    cost = 1000 * (processor_seconds() - cpu) / len(known)
    passages = characters / 1_000
    print(
        f"| first run | {len(known):,} | {took:.2f} | {cost:.2f} | {len(known) / took:,.0f} | {passages / took:,.0f} |"
    )
    return known


async def again(folder: Path, log: Path, known: dict[str, KnownFile], *, trust_times: bool) -> None:
    """A run in which nothing has changed."""
    began, cpu = time.perf_counter(), processor_seconds()
    stream = read_folder([folder], known, log_path=log, trust_times=trust_times)
    same = [item async for item in stream if isinstance(item, Unchanged)]
    took = time.perf_counter() - began
    cost = 1000 * (processor_seconds() - cpu) / len(same)
    how = "by size and time" if trust_times else "by content"
    print(f"| second run, {how} | {len(same):,} | {took:.2f} | {cost:.2f} | {len(same) / took:,.0f} | |")


def process_per_file(folder: Path, files: int) -> None:
    """The same child started for every file."""
    paths = sorted(folder.rglob("*.md"))[:files]
    code = "import sys; from lathe.engine.rag.ingest.document import parse; import lathe.engine.rag.ingest.child as c\n"
    code += "from lathe.engine.rag.ingest.readers.base import Notes, Source\n"
    code += "from pathlib import Path; p = Path(sys.argv[1])\n"
    code += "parse(Source(p.name, p.open('rb'), p.stat().st_size), Notes(), str(p))"
    began, cpu = time.perf_counter(), processor_seconds()
    for path in paths:
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, stderr=subprocess.DEVNULL)
    took = time.perf_counter() - began
    cost = 1000 * (processor_seconds() - cpu) / len(paths)
    print(f"| a process per file | {len(paths):,} | {took:.2f} | {cost:.2f} | {len(paths) / took:,.0f} | |")


def side_costs(folder: Path) -> None:
    """Flags and near-duplicate search per passage of a thousand characters."""
    text = "\n\n".join(path.read_text() for path in sorted(folder.rglob("*.md"))[:500])
    passages = [text[start : start + 1_000] for start in range(0, len(text) - 1_000, 1_000)]
    began = time.perf_counter()
    for passage in passages:
        passage_flags(passage)
    flags = len(passages) / (time.perf_counter() - began)
    duplicates = Duplicates()
    began = time.perf_counter()
    for key, passage in enumerate(passages):
        duplicates.check(key, passage)
    near = len(passages) / (time.perf_counter() - began)
    print("| per passage | passages/s |\n|---|---|")
    print(f"| injection and personal data | {flags:,.0f} |")
    print(f"| exact and near duplicates (MinHash, 128 permutations) | {near:,.0f} |")


def main() -> None:
    """Print every table."""
    arguments = argparse.ArgumentParser(description=__doc__)
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "documents"
    arguments.add_argument("--documents", type=Path, default=beside)
    arguments.add_argument("--files", type=int, default=2_000)
    given = arguments.parse_args()
    if given.documents.is_dir():
        by_format(given.documents)
    with tempfile.TemporaryDirectory() as temporary:
        folder, log = Path(temporary) / "docs", Path(temporary) / "log"
        size = write_corpus(folder, given.files)
        print(f"\n{given.files:,} Markdown files, {size / 1e6:.1f} MB:\n")
        print("| end to end | files | s | CPU ms/file | files/s | passages of 1,000 characters/s |")
        print("|---|---|---|---|---|---|")
        known = asyncio.run(end_to_end(folder, log))
        asyncio.run(again(folder, log, known, trust_times=True))
        asyncio.run(again(folder, log, known, trust_times=False))
        process_per_file(folder, 30)
        print()
        side_costs(folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"\nPeak memory of the engine's side: {peak:,.0f} MiB")


if __name__ == "__main__":
    main()
