"""Texts that break terminals, markup and layouts: what every widget that shows foreign text has to survive."""

from __future__ import annotations

HOSTILE = (
    "[/bold]",
    "[bold]unclosed",
    "[@click=app.how_to_quit]press me[/]",
    "[@click='app.exit']quit[/]",
    "[link=https://example.invalid]link[/link]",
    "\\[not markup] [[double]] []",
    "[red on #zzz]colour[/]",
    "\x1b[2J\x1b[Hcleared",
    "\x1b]0;owned\x07title",
    "\x1b]52;c;cm0gLXJmIC8=\x07clipboard",
    "\x1b]8;;file:///etc/passwd\x1b\\click\x1b]8;;\x1b\\",
    "\x1bP+q544e\x1b\\dcs",
    "\x9b31mc1 csi\x9c",
    "\x1b[?1049lleave the alternate screen",
    "\u202egnp.exe\u202c invoice",
    "a\u200bb\u200cc\u200dd\ufeffe",
    "\U000e0068\U000e0069hidden tags",
    "Z" + "\u0335\u0321\u0348" * 200 + "algo",
    "\ud800 lone surrogate",
    "bell\x07 backspace\x08\x08 null\x00 del\x7f",
)
CORPUS = (
    "",
    " ",
    "plain text",
    "漢字かな混じり文 한국어 ไทย",
    "👩‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🇺🇳",
    "ﷺ ａｂｃ ½ ①",
    "e\u0301 n\u0303 combining",
    "a\tb\r\nc\rd\u2028e",
    "x" * 5_000,
    "漢" * 2_000,
    "word " * 2_000,
    "../../etc/passwd; rm -rf ~ && $(reboot) `id`",
    "{0} %s {name} ${HOME} %n",
    "# heading\n\n> " * 40,
    "| a | b |\n|---|---|\n| [x](javascript:alert(1)) | <script>alert(1)</script> |",
    "```python\nunclosed fence " + "`" * 50,
)
