"""Each format gives its text with structure: pages, heading paths, rows in words."""

from __future__ import annotations

import email.message
import io
import json
import sys
import time
from pathlib import Path

import pytest
from lathe.engine.errors import LatheError
from lathe.engine.rag.ingest.document import parse
from lathe.engine.rag.ingest.readers.base import Notes, Source
from lathe.engine.rag.ingest.recognise import FORMATS
from lathe.engine.rag.values import ParsedDocument, ReadLimits
from support.hostile_documents import PNG, docx_with, epub_with, pdf, pdf_text, stream

pytest.importorskip("trafilatura")


def read(name: str, data: bytes | str, limits: ReadLimits | None = None) -> ParsedDocument:
    raw = data.encode() if isinstance(data, str) else data
    source = Source(name, io.BytesIO(raw), len(raw))
    document = parse(source, Notes(limits=limits or ReadLimits()), f"/docs/{name}")
    end = 0
    for block in document.blocks:  # spans are in order, apart and never empty
        assert block.start >= end
        assert document.text_of(block).strip()
        end = block.end
    return document


def blocks(document: ParsedDocument) -> list[tuple[str, str, int | None, tuple[str, ...]]]:
    return [(block.kind, document.text_of(block), block.page, block.heading_path) for block in document.blocks]


def test_text() -> None:
    document = read("a.txt", "First line\nsame paragraph.\n\n \nSecond.\n")
    assert [text for _, text, _, _ in blocks(document)] == ["First line\nsame paragraph.", "Second."]
    assert document.encoding == "utf-8"


def test_markdown() -> None:
    document = read(
        "a.md",
        "---\ntitle: Guide\nauthor: Ada\n---\n# One\n\nText <!-- ignore the reader --> here.\n\n## Two\n\n- a\n- b\n\n"
        "```python\nx = '<!-- code -->'\n```\n\n| Name | Born |\n|---|---|\n| Ada | 1815 |\n\n"
        "> Quoted.\n\n# Three\n\nEnd.",
    )
    assert document.title == "Guide"
    assert document.metadata["author"] == "Ada"
    assert document.flags == {"comment": 1}
    assert blocks(document) == [
        ("heading", "One", None, ("One",)),
        ("paragraph", "Text  here.", None, ("One",)),
        ("heading", "Two", None, ("One", "Two")),
        ("list", "- a\n- b", None, ("One", "Two")),
        ("code", "```python\nx = '<!-- code -->'\n```", None, ("One", "Two")),
        ("row", "Name: Ada; Born: 1815", None, ("One", "Two")),
        ("quote", "> Quoted.", None, ("One", "Two")),
        ("heading", "Three", None, ("Three",)),
        ("paragraph", "End.", None, ("Three",)),
    ]


def test_html_without_what_nobody_sees() -> None:
    document = read(
        "a.html",
        "<!doctype html><html lang='en'><head><title>Page</title><style>p{}</style></head><body><!-- obey -->"
        "<h1>Top</h1><p>Seen <b>words</b>.</p><p style='display:none'>unseen one</p><p hidden>unseen two</p>"
        "<span style='color:#fff'>unseen three</span><span style='font-size:0px'>unseen four</span>"
        "<div style='color:white;background:black'>White on black.</div><script>run()</script>"
        "<h2>Data</h2><table><tr><th>Name</th><th>Born</th></tr><tr><td>Ada</td><td>1815</td></tr></table>"
        "<pre>a\n  b</pre><ul><li>x</li><li>y</li></ul></body></html>",
    )
    assert document.title == "Page"
    assert document.language == "en"
    assert "unseen" not in document.text
    assert "run()" not in document.text
    assert "obey" not in document.text
    assert document.flags == {"comment": 1, "hidden": 4}
    assert ("paragraph", "White on black.", None, ("Top",)) in blocks(document)
    assert ("row", "Name: Ada; Born: 1815", None, ("Top", "Data")) in blocks(document)
    assert ("code", "a\n  b", None, ("Top", "Data")) in blocks(document)


@pytest.mark.parametrize(
    ("size", "seen"),
    [
        ("0.9em", True), (".875rem", True), ("0.8rem", True), ("0.5%", True), ("1px", True), ("10pt", True),
        ("", True), ("0", False), ("0.0px", False), (".0em", False), ("0 ; color: red", False), ("00vw", False),
        ("0 !important", False), ("0%", False), ("0.9px", False), (".5pt;", False), ("0.1PX!important", False),
    ],
)  # fmt: skip
def test_small_print_is_read_and_text_without_a_size_is_not(size: str, seen: bool) -> None:
    html = f"<html><body><p>Seen.</p><p style='font-size: {size}'>Printed.</p></body></html>"
    message = mail("S", "")
    message.set_content(html, subtype="html")
    for document in (read("a.html", html), read("a.epub", epub_with(html)), read("a.eml", message.as_bytes())):
        assert ("Printed." in document.text) is seen
        assert document.flags == ({} if seen else {"hidden": 1})


def test_the_font_size_of_another_property_hides_nothing() -> None:
    page = "<html><body><p style='mso-ansi-font-size:0pt; --font-size:0'>Printed.</p></body></html>"
    assert read("a.html", page).text == "Printed."


def test_a_long_run_of_blanks_in_a_page_takes_no_time() -> None:
    began = time.process_time()
    assert read("a.html", f"<p>One{' ' * 100_000}two \t \n \n three</p>").text == "One two\nthree"
    assert time.process_time() - began < 2.0


def test_html_article_without_its_frame() -> None:
    article = "".join(
        f"<p>Paragraph {n} of the article tells a story about the number {n}, at length.</p>" for n in range(20)
    )
    menu = "".join(f"<li><a href='/{n}'>Menu entry {n}</a></li>" for n in range(20))
    document = read(
        "a.html",
        f"<html><body><nav><ul>{menu}</ul></nav><article><h1>Story</h1>{article}</article>"
        "<footer>All rights reserved</footer></body></html>",
    )
    assert "Paragraph 19 of the article" in document.text
    assert "Menu entry" not in document.text


def test_deep_html_is_read_or_refused_but_never_crashes() -> None:
    data = "<html><body>" + "<div>" * 50_000 + "deep" + "</div>" * 50_000 + "</body></html>"
    try:
        assert "deep" in read("deep.html", data).text
    except (LatheError, RecursionError):
        pass


def test_pdf_pages_outline_and_hyphens() -> None:
    font = b"/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"

    def page(number: int) -> bytes:
        return b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R %s >>" % (number, font)

    first = b"BT /F1 12 Tf 14 TL 72 720 Td (1 Begin) Tj T* (A hyphen-) Tj T* (ated word) Tj ET"
    second = b"BT /F1 12 Tf 72 720 Td (More of it) Tj ET"
    data = pdf(
        {
            1: b"<< /Type /Catalog /Pages 2 0 R /Outlines 7 0 R >>",
            2: b"<< /Type /Pages /Kids [3 0 R 4 0 R] /Count 2 >>",
            3: page(5),
            4: page(6),
            5: stream(first),
            6: stream(second),
            7: b"<< /Type /Outlines /First 8 0 R /Last 8 0 R /Count 1 >>",
            8: b"<< /Title (Begin) /Parent 7 0 R /Dest [3 0 R /Fit] >>",
        }
    )
    document = read("a.pdf", data)
    assert blocks(document) == [
        ("heading", "1 Begin", 1, ("Begin",)),
        ("paragraph", "A hyphenated word", 1, ("Begin",)),
        ("paragraph", "More of it", 2, ("Begin",)),
    ]


def test_pdf_running_heads_are_left_out() -> None:
    font = b"/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: b"<< /Type /Pages /Kids [%s] /Count 6 >>" % b" ".join(b"%d 0 R" % (10 + n) for n in range(6)),
    }
    for n in range(6):
        text = b"BT /F1 12 Tf 14 TL 72 720 Td (Annual Report) Tj T* (Content number %d) Tj T* (Page %d) Tj ET" % (
            n * 7,
            n,
        )
        objects[10 + n] = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R %s >>" % (
            20 + n,
            font,
        )
        objects[20 + n] = stream(text)
    document = read("a.pdf", pdf(objects))
    assert [text for _, text, _, _ in blocks(document)] == [f"Content number {n * 7}" for n in range(6)]


def long_pdf(pages: int) -> bytes:
    """A PDF of many pages with a running head and a word that is cut."""
    font = b"/Resources << /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >>"
    kids = b" ".join(b"%d 0 R" % (10 + 2 * n) for n in range(pages))
    objects = {
        1: b"<< /Type /Catalog /Pages 2 0 R >>",
        2: b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, pages),
    }
    for n in range(pages):
        lines = b"(The Long Book) Tj T* (Chapter text number %d is hyphen-) Tj T* (ated here) Tj T* (%s ends it) Tj" % (
            n,
            chr(97 + n % 26).encode() * (1 + n // 26),
        )
        objects[10 + 2 * n] = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents %d 0 R %s >>" % (
            11 + 2 * n,
            font,
        )
        objects[11 + 2 * n] = stream(b"BT /F1 12 Tf 14 TL 72 720 Td %s ET" % lines)
    return pdf(objects)


@pytest.mark.parametrize("missing", [False, True])
def test_a_long_pdf_reads_alike_with_and_without_pdfium(missing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing:
        monkeypatch.setitem(sys.modules, "pypdfium2", None)
    else:
        pytest.importorskip("pypdfium2")
    document = read("long.pdf", long_pdf(60))
    assert ("pypdfium2" in document.parser) is not missing
    assert blocks(document) == [
        (
            "paragraph",
            f"Chapter text number {n} is hyphenated here\n{chr(97 + n % 26) * (1 + n // 26)} ends it",
            n + 1,
            (),
        )
        for n in range(60)
    ]


def test_docx() -> None:
    docx = pytest.importorskip("docx")
    made = docx.Document()
    made.core_properties.title = "Report"
    made.add_heading("One", 1)
    made.add_paragraph("Shown.").add_run(" Hidden.").font.hidden = True
    made.add_heading("Two", 2)
    table = made.add_table(2, 2)
    for place, text in enumerate(("Name", "Born", "Ada", "1815")):
        table.cell(place // 2, place % 2).text = text
    made.add_paragraph("Item", style="List Bullet")
    out = io.BytesIO()
    made.save(out)
    document = read("a.docx", out.getvalue())
    assert document.title == "Report"
    assert document.flags == {"hidden": 1}
    assert blocks(document)[:4] == [
        ("heading", "One", None, ("One",)),
        ("paragraph", "Shown.", None, ("One",)),
        ("heading", "Two", None, ("One", "Two")),
        ("row", "Name: Ada; Born: 1815", None, ("One", "Two")),
    ]
    assert document.text.endswith("Item")


def test_docx_under_review() -> None:
    space = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'
    body = (
        "<w:p><w:r><w:t>Old </w:t></w:r><w:ins><w:r><w:t>new</w:t></w:r></w:ins>"
        "<w:del><w:r><w:delText>gone</w:delText></w:r></w:del></w:p>"
        "<w:sdt><w:sdtContent><w:p><w:r><w:t>Controlled</w:t></w:r></w:p></w:sdtContent></w:sdt>"
    )
    document = read("a.docx", docx_with(f"<w:document {space}><w:body>{body}</w:body></w:document>"))
    assert [text for _, text, _, _ in blocks(document)] == ["Old new", "Controlled"]


def test_a_table_in_a_table_of_a_docx_is_part_of_its_cell() -> None:
    space = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'

    def cell(text: str, more: str = "") -> str:
        return f"<w:tc><w:p><w:r><w:t>{text}</w:t></w:r></w:p>{more}</w:tc>"

    def controlled(content: str) -> str:
        return f"<w:sdt><w:sdtPr/><w:sdtContent>{content}</w:sdtContent></w:sdt>"

    inner = f"<w:tbl><w:tr>{cell('Left')}{cell('Right')}</w:tr><w:tr>{cell('Low')}{cell('Last')}</w:tr></w:tbl>"
    rows = (
        f"<w:tr>{cell('Name')}{controlled(cell('Note'))}</w:tr><w:tr>{cell('Ada')}{cell('Own', inner)}</w:tr>"
        + controlled(f"<w:tr>{cell('Alan')}{cell('None')}</w:tr>")
    )
    body = f"<w:body><w:tbl>{rows}</w:tbl></w:body>"
    document = read("a.docx", docx_with(f"<w:document {space}>{body}</w:document>"))
    assert [text for _, text, _, _ in blocks(document)] == [
        "Name: Ada; Note: Own Left Right Low Last",
        "Name: Alan; Note: None",
    ]


def test_pptx() -> None:
    pptx = pytest.importorskip("pptx")
    deck = pptx.Presentation()
    for number in (1, 2):
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = f"Slide {number}"
        slide.placeholders[1].text = f"Body {number}"
    slide.notes_slide.notes_text_frame.text = "Say this."
    hidden = deck.slides.add_slide(deck.slide_layouts[1])
    hidden.shapes.title.text = "Unseen"
    hidden.element.set("show", "0")
    out = io.BytesIO()
    deck.save(out)
    document = read("a.pptx", out.getvalue())
    assert document.flags == {"hidden": 1}
    assert blocks(document) == [
        ("heading", "Slide 1", 1, ("Slide 1",)),
        ("paragraph", "Body 1", 1, ("Slide 1",)),
        ("heading", "Slide 2", 2, ("Slide 2",)),
        ("paragraph", "Body 2", 2, ("Slide 2",)),
        ("paragraph", "Say this.", 2, ("Slide 2", "Notes")),
    ]


def test_xlsx() -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    sheet = book.active
    sheet.title = "People"
    for row in (["Name", "Born", "Known"], ["Ada", 1815, True], [None, None, None], ["Alan", 1912.5, None]):
        sheet.append(row)
    secret = book.create_sheet("Secret")
    secret.append(["a", "b"])
    secret.sheet_state = "hidden"
    out = io.BytesIO()
    book.save(out)
    document = read("a.xlsx", out.getvalue())
    assert document.flags == {"hidden": 1}
    assert blocks(document) == [
        ("row", "Name: Ada; Born: 1815; Known: yes", 1, ("People",)),
        ("row", "Name: Alan; Born: 1912.5", 1, ("People",)),
    ]


def test_epub() -> None:
    document = read("a.epub", epub_with("<html><body><h1>Chapter</h1><p>Words.</p></body></html>"))
    assert document.title == "Book"
    assert blocks(document) == [("heading", "Chapter", 1, ("Chapter",)), ("paragraph", "Words.", 1, ("Chapter",))]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_csv(delimiter: str) -> None:
    rows = [["Name", "Born", "Note"], ["Ada", "1815", 'says "hi"'], ["Alan", "1912", "two\nlines"]]
    text = "\n".join(delimiter.join('"{}"'.format(cell.replace('"', '""')) for cell in row) for row in rows)
    assert [text for _, text, _, _ in blocks(read("a.csv", text))] == [
        'Name: Ada; Born: 1815; Note: says "hi"',
        "Name: Alan; Born: 1912; Note: two lines",
    ]


def test_json() -> None:
    small = read("a.json", json.dumps({"name": "Ada", "works": [1, 2], "born": {"year": 1815}, "dead": None}))
    assert small.text == "name: Ada\nworks: 1, 2\nborn.year: 1815\ndead: "
    large = read("b.json", json.dumps({"people": [{"name": f"P{n}", "text": "x" * 900} for n in range(4)]}))
    assert [path for _, _, _, path in blocks(large)] == [("people", f"P{n}") for n in range(4)]


def test_json_lines_with_a_broken_one() -> None:
    document = read("a.jsonl", '{"a": 1}\nnot json\n{"a": "\\ud800"}\n')
    assert [text.encode("utf-8", "replace") for _, text, _, _ in blocks(document)] == [b"a: 1", b"a: ?"]
    assert document.skipped == ("line 2: Expecting value",)


def test_lines_in_a_json_file_are_noticed() -> None:
    assert read("a.json", '{"a": 1}\n{"a": 2}\n').text == "a: 1\n\na: 2"


def test_source_code_keeps_its_shape_and_names() -> None:
    code = "import os\n\n\nclass A:\n    x = 1\n\n    def f(self):\n        return 1\n\n\ndef g():\n    pass\n\n\ng()\n"
    document = read("a.py", code)
    assert blocks(document) == [
        ("code", "import os", None, ()),
        ("code", "class A:\n    x = 1", None, ("class A",)),
        ("code", "    def f(self):\n        return 1", None, ("class A", "def f")),
        ("code", "def g():\n    pass", None, ("def g",)),
        ("code", "g()", None, ()),
    ]


def test_notebook() -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "Intro"]},
        {"cell_type": "code", "source": "1 + 1", "outputs": [{"data": {"text/plain": ["2"]}}, {"text": "printed\n"}]},
        {"cell_type": "markdown", "source": "## Sub"},
        {"cell_type": "code", "source": "x"},
    ]
    assert blocks(read("a.ipynb", json.dumps({"cells": cells}))) == [
        ("heading", "Title", 1, ("Title",)),
        ("paragraph", "Intro", 1, ("Title",)),
        ("code", "1 + 1", 2, ("Title",)),
        ("cell", "2\nprinted", 2, ("Title",)),
        ("heading", "Sub", 3, ("Title", "Sub")),
        ("code", "x", 4, ("Title", "Sub")),
    ]


def mail(subject: str, body: str) -> email.message.EmailMessage:
    message = email.message.EmailMessage()
    message["From"], message["To"], message["Subject"] = "Ada <ada@example.org>", "bob@example.org", subject
    message.set_content(body)
    return message


def test_mail_with_attachments() -> None:
    message = mail("Grüße", "Hello Bob.\n\n> you wrote\n")
    message.add_alternative("<p>Hello Bob, in HTML.</p>", subtype="html")
    message.add_attachment("name,born,note\nAda,1815,x\n", subtype="csv", filename="people.csv")
    message.add_attachment(PNG, maintype="image", subtype="png", filename="p.png")
    inner = mail("Inner", "Inside text.")
    message.add_attachment(inner, filename="inner.eml")
    document = read("a.eml", message.as_bytes())
    assert document.title == "Grüße"
    assert document.metadata["from"] == "Ada <ada@example.org>"
    found = blocks(document)
    assert ("paragraph", "Hello Bob.", None, ("Grüße",)) in found
    assert ("quote", "> you wrote", None, ("Grüße",)) in found
    assert ("record", "name: Ada; born: 1815; note: x", None, ("Grüße", "people.csv")) in found
    assert ("paragraph", "Inside text.", None, ("Grüße", "inner.eml", "Inner")) in found
    assert "in HTML" not in document.text
    assert document.skipped == ("attachment p.png: an image, not a document",)


@pytest.mark.parametrize("blank", ["", " \n\n", "\u00a0\n"])
def test_a_mail_whose_plain_part_says_nothing_is_read_from_its_html(blank: str) -> None:
    message = mail("S", blank)
    message.add_alternative("<p>Said in HTML.</p>", subtype="html")
    assert ("paragraph", "Said in HTML.", None, ("S",)) in blocks(read("a.eml", message.as_bytes()))
    assert "S" in read("a.eml", mail("S", blank).as_bytes()).text


def test_a_mail_that_is_a_document_itself_is_read_as_its_attachment() -> None:
    message = mail("Scan", "")
    message.set_content(pdf_text("Scanned words"), maintype="application", subtype="pdf", filename="scan.pdf")
    assert ("paragraph", "Scanned words", 1, ("Scan", "scan.pdf")) in blocks(read("a.eml", message.as_bytes()))
    message.set_content(PNG, maintype="image", subtype="png")
    assert read("a.eml", message.as_bytes()).skipped == ("attachment image/png: an image, not a document",)
    message.set_content(mail("Inner", "Inside text."))
    found = blocks(read("a.eml", message.as_bytes()))
    assert ("paragraph", "Inside text.", None, ("Scan", "message/rfc822.eml", "Inner")) in found
    message.set_content("name,born,note\nAda,1815,x\n", subtype="csv", disposition="attachment", filename="people.csv")
    found = blocks(read("a.eml", message.as_bytes()))
    assert ("record", "name: Ada; born: 1815; note: x", None, ("Scan", "people.csv")) in found


def test_messages_in_messages_end() -> None:
    message = mail("0", "level 0")
    for level in range(1, 8):
        outer = mail(str(level), f"level {level}")
        outer.add_attachment(message)
        message = outer
    document = read("a.eml", message.as_bytes())
    assert "level 7" in document.text
    assert "level 0" not in document.text
    assert any("messages deep" in line for line in document.skipped)


def test_mbox() -> None:
    box = b"".join(
        b"From x@y Mon Jan  1 00:00:00 2024\n" + mail(f"S{n}", f"Text {n}").as_bytes() + b"\n" for n in (1, 2)
    )
    document = read("archive.mbox", box)
    assert [(page, path[0]) for kind, text, page, path in blocks(document) if text.startswith("Text")] == [
        (1, "Message 1"),
        (2, "Message 2"),
    ]


def test_mixed_content_of_xml_is_given_once() -> None:
    document = read(
        "a.xml",
        "<book><title>Title</title><p>One <b>bold <i>and</i> brave</b> word</p><list><item>First</item><item><b>Second"
        "</b> with more</item></list><p><b>Alone</b></p></book>",
    )
    assert [text for _, text, _, _ in blocks(document)] == [
        "Title", "One bold and brave word", "First", "Second with more", "Alone",
    ]  # fmt: skip


def test_feed() -> None:
    document = read(
        "a.rss",
        "<?xml version='1.0'?><rss><channel><title>News</title><item><title>One</title><pubDate>Mon</pubDate>"
        "<description>&lt;p&gt;Body &lt;b&gt;bold&lt;/b&gt;&lt;/p&gt;</description></item></channel></rss>",
    )
    assert document.title == "News"
    assert [(kind, text) for kind, text, _, _ in blocks(document)] == [
        ("heading", "One"),
        ("record", "Date: Mon"),
        ("paragraph", "Body bold"),
    ]


def test_content_beats_the_extension() -> None:
    html = "<html><body><p>Words of a page.</p></body></html>"
    assert read("a.txt", html).media_type == "text/html"
    assert read("a.pdf", "Just words.").media_type == "text/plain"
    assert read("a.html", "Just words.").media_type == "text/plain"
    assert read("a.bin", epub_with("<p>x</p>")).media_type == "application/epub+zip"
    assert read("noextension", "Just words.").media_type == "text/plain"


def test_the_cap_holds_for_every_reader() -> None:
    limits = ReadLimits(output_chars=1_000)
    for name, data in (
        ("a.txt", "word " * 300),
        ("a.md", "# H\n\n" + "word\n\n" * 200),
        ("a.csv", "a,b,c\n" + "x,y,z\n" * 200),
        ("a.jsonl", '{"key": "value"}\n' * 100),
    ):
        with pytest.raises(LatheError) as error:
            read(name, data, limits)
        assert error.value.code == "E_DOCUMENT_LIMIT", name


def test_every_format_has_a_reader() -> None:
    from importlib import import_module

    for found in FORMATS:
        module, _, function = found.reader.partition(":")
        assert callable(getattr(import_module(f"lathe.engine.rag.ingest.readers.{module}"), function))
    assert len({found.media_type for found in FORMATS}) == len(FORMATS)


def test_a_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "pypdf", None)
    with pytest.raises(LatheError) as error:
        read("a.pdf", b"%PDF-1.7")
    assert error.value.code == "E_NEEDS_EXTRA"
    assert "lathe-llm[rag]" in error.value.hint
