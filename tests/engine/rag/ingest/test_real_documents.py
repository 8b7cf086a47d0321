"""Real documents of many producers, beside what another converter made of them: text, or an honest row."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from lathe.engine.rag.ingest.folder import read_folder
from lathe.engine.rag.ingest.values import FileProblem, Item
from lathe.engine.rag.values import ParsedDocument

pytestmark = pytest.mark.shared
pytest.importorskip("trafilatura")
pytest.importorskip("pypdf")

WITHOUT_TEXT = {
    "MEDRPT-2024-PAT-3847_medical_report_scan.pdf": "E_NO_TEXT",
    "libreoffice-writer-password.pdf": "E_ENCRYPTED",
    "imagemagick-ASCII85Decode.pdf": "E_NO_TEXT",
    "imagemagick-CCITTFaxDecode.pdf": "E_NO_TEXT",
    "imagemagick-lzw.pdf": "E_NO_TEXT",
    "grayscale-image.pdf": "E_NO_TEXT",
    "cmyk-image.pdf": "E_NO_TEXT",
    "random.bin": "E_NOT_A_DOCUMENT",
    "test.jpg": "E_NOT_A_DOCUMENT",
    "test_files.zip": "E_NOT_A_DOCUMENT",
}
PHRASES = {
    "test.docx": ("AutoGen is an open-source framework", "d666f1f7-46cb-42bd-9a39-9a39cf2a509f"),
    "test.pptx": ("2cdda5c8-e50e-4db4-b5f0-9722a649f455", "1b92870d-e3b5-4e65-8153-919f4ff45592", "AutoGen"),
    "test.xlsx": (
        "Alpha: 89; Beta: 82",
        "6ff4173b-42a5-4784-9b19-f49caff4d93d",
        "affc7dad-52dc-4b98-9b5d-51e65d8a8ad0",
    ),
    "test.xls": ("Alpha: 89; Beta: 82", "6ff4173b-42a5-4784-9b19-f49caff4d93d", "affc7dad-52dc-4b98-9b5d-51e65d8a8ad0"),
    "test.epub": ("Chapter 2: More Content", "This is a blockquote for testing."),
    "test_blog.html": (
        "Large language models (LLMs) are powerful tools",
        "an example where high cost can easily prevent",
    ),
    "test_wikipedia.html": ("Microsoft entered the operating system", "Microsoft was founded by Bill Gates"),
    "test_rss.xml": ("Ignite 2024: Why nearly 70% of the Fortune 500 now use Microsoft 365 Copilot",),
    "test_mskanji.csv": ("名前: 佐藤太郎; 年齢: 30; 住所: 東京",),
    "test_notebook.ipynb": ('print("markitdown")', "# comment in code"),
    "test_outlook_msg.msg": ("Test Email Message", "This is the body of the test email message"),
    "test.json": ("5b64c88c-b3c3-4510-bcb8-da0b200602d8", "9700dc99-6685-40b4-9a3a-5e406dcb37f3"),
    "habibi.pdf": ("habibi", "حَبيبي"),
    "pdflatex-outline.pdf": ("Hello, here is some text without a meaning",),
    "multicolumn.pdf": ("Two-Column Document with Lorem Ipsum",),
}


@pytest.mark.timeout(300)
async def test_all_formats(shared_data: Path, tmp_path: Path) -> None:
    found: dict[str, Item] = {}
    async for item in read_folder([shared_data / "documents"], {}, log_path=tmp_path / "log"):
        if "expected_outputs" not in item.path and Path(item.path).suffix != ".md":
            found[Path(item.path).name] = item
    problems = {name: item.failure.code for name, item in found.items() if isinstance(item, FileProblem)}
    assert problems == WITHOUT_TEXT
    for name, phrases in PHRASES.items():
        document = found[name]
        assert isinstance(document, ParsedDocument), name
        assert not document.skipped, (name, document.skipped)
        for phrase in phrases:
            assert phrase in document.text, (name, phrase)
    outlined = found["pdflatex-outline.pdf"]
    assert isinstance(outlined, ParsedDocument)
    assert {block.heading_path for block in outlined.blocks} > {("Foo",), ("Bar",), ("Baz",)}
    book = found["GeoTopo-komprimiert.pdf"]
    assert isinstance(book, ParsedDocument)
    assert book.language == "de"
    assert max(block.page or 0 for block in book.blocks) > 100


@pytest.mark.parametrize(
    "name", ["RECEIPT-2024-TXN-98765_retail_purchase", "REPAIR-2022-INV-001_multipage", "movie-theater-booking-2024",
             "SPARSE-2024-INV-1234_borderless_table", "test"],
)  # fmt: skip
async def test_words_of_another_converter_are_here_as_well(shared_data: Path, tmp_path: Path, name: str) -> None:
    folder = shared_data / "documents" / "markitdown"
    theirs = re.sub(r"(?<=[a-z])-\s*\n", "", (folder / "expected_outputs" / f"{name}.md").read_text())
    expected = set(re.findall(r"\w{4,}", theirs.casefold()))
    (item,) = [item async for item in read_folder([folder / f"{name}.pdf"], {}, log_path=tmp_path / "log")]
    assert isinstance(item, ParsedDocument)
    got = set(re.findall(r"\w{4,}", item.text.casefold()))
    assert len(expected & got) >= 0.97 * len(expected), sorted(expected - got)
