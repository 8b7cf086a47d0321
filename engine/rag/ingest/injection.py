"""Text that speaks to a model instead of a reader: flagged, shown, and left out where the policy says so.

A flag is a reason to look, not a proof: what protects an answer is that retrieved text is fenced, has no tools and is
never obeyed. The patterns follow the attack families of published corpora (override, new role, addressing the model,
exfiltration, forged turns). Invariant: matching is linear; every gap in a pattern is bounded.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_FEW = r"(?:\W+\w+){0,4}?\W+"
_ORDERS = r"(?:instructions?|prompts?|rules?|guidelines?|directives?|directions?|commands?|orders?|safety\s+measures)"
_MODELS = r"(?:ai|a\.i\.|llms?|(?:large\s+)?language\s+models?|(?:ai\s+)?assistants?|chatbots?|gpt)"

_PATTERNS: tuple[tuple[tuple[str, ...], re.Pattern[str]], ...] = tuple(
    (tuple(words.split()), re.compile(pattern, re.IGNORECASE))
    for words, pattern in (
        (
            "ignor disregard forget overrid bypass neglect overlook",
            rf"\b(?:ignore|disregard|forget|override|bypass|neglect|overlook)\b{_FEW}{_ORDERS}\b"
            r"|\b(?:ignore|disregard|forget)\s+(?:everything|all|anything)\s+(?:above|before|prior|previous|you)\b",
        ),
        ("now", r"\byou\s+(?:are|will)\s+now\s+(?:an?\b|the\b|in\b|no\s+longer|act|be|called|operating)"),
        (
            "instruction prompt task",
            r"\b(?:new|updated|real|actual|important)\s+(?:system\s+)?(?:instructions?|prompt|task)\s*(?:for\s+\w+\s*)?:",
        ),
        ("mode", r"\b(?:enter|enable|activate)\s+(?:developer|dan|jailbreak|god|debug)\s+mode\b"),
        (
            "prompt",
            rf"\b(?:reveal|print|repeat|show|output|leak|tell\s+me)\b{_FEW}(?:system|initial|hidden)\s+prompt\b",
        ),
        (
            "attention note notice message instruction",
            r"\b(?:attention|note|notice|message|instructions?)\s+(?:to|for)\s+(?:all\s+|any\s+|the\s+)?"
            rf"{_MODELS}\b",
        ),
        ("if", rf"\bif\s+you\s+are\s+(?:an?\s+|the\s+)?{_MODELS}\b"),
        (
            "user human reader",
            r"\b(?:do\s+not|don'?t|never)\s+(?:tell|inform|mention\s+(?:this|it)\s+to|reveal\s+(?:this|it)\s+to|alert"
            r"|warn)\s+(?:the\s+)?(?:user|human|reader)\b",
        ),
        (
            "conversation history password key credential secret prompt",
            rf"\b(?:send|forward|post|transmit|exfiltrate|e-?mail|upload)\b{_FEW}"
            rf"(?:conversation|chat\s+history|passwords?|api\s+keys?|credentials|secrets?|system\s+prompt)"
            r"(?:\W+\w+){0,4}?"
            r"\W+(?:to|at)\b",
        ),
        ("![", r"!\[[^\]\n]{0,200}\]\(\s*https?://[^)\s]{1,300}[?&][\w-]{1,40}=(?:\{|%7b|<|\[|\$)"),
        (
            "anweisung instruktion befehl regel vorgabe",
            r"\b(?:ignoriere|vergiss|missachte|ignorieren\s+sie|vergessen\s+sie)\b"
            rf"{_FEW}(?:anweisungen|instruktionen|befehle|regeln|vorgaben)\b",
        ),
        (
            "instructions consignes directives règles",
            rf"\b(?:ignore[zr]?|oublie[zr]?)\b{_FEW}(?:instructions|consignes|directives|règles)\b",
        ),
        (
            "instruc instruç istruzioni reglas regras regole órdenes",
            r"\b(?:ignora|ignore|olvida|olvide|desconsidere|esqueça|dimentica)\b"
            rf"{_FEW}(?:instrucciones|instruções|istruzioni|reglas|regras|regole|órdenes)\b",
        ),
        (
            "инструкци указани правила",
            rf"\b(?:игнорируй|игнорируйте|забудь|забудьте)\b{_FEW}(?:инструкции|указания|правила)",
        ),
        (
            "忽略 无视 忘记 忽視 無視",
            r"(?:忽略|无视|忘记|忽視|無視)[^\n。]{0,12}(?:指令|指示|说明|說明|提示|规则|規則)",
        ),
        ("無視 忘れ", r"(?:指示|命令|プロンプト|ルール)を(?:すべて|全て)?(?:無視|忘れ)"),
    )
)
"""Words of which one must occur at all, which is quick to see, and the pattern that then decides."""
_TEMPLATE_WORDS = (
    "<|",
    "<｜",
    "inst]",
    "sys>>",
    "of_turn>",
    "tool_",
    "function_call",
    "###",
    "role",
    "of_text",
    "of_sent",
)
_TEMPLATE = re.compile(
    r"<\|[a-z_]{2,40}\|>|<｜[^｜\n]{2,40}｜>|\[/?INST\]|<</?SYS>>|</?(?:start|end)_of_turn>|</?tool_(?:call|response)s?>"
    r"|</?function_calls?>|<\|?(?:begin|end)_of_(?:text|sentence)\|?>|\[/?(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
    r"|^\s*###\s*(?:system|instruction|response)\s*:|[\"']role[\"']\s*:\s*[\"'](?:system|assistant|tool)[\"']",
    re.IGNORECASE | re.MULTILINE,
)
_LOOK_ALIKES = str.maketrans(
    "аеорсухіјѕԁАВЕКМНОРСТХοαιενρτυΑΒΕΗΙΚΜΝΟΡΤΥΧ", "aeopcyxijsdABEKMHOPCTXoaievptuABEHIKMNOPTYX"
)
"""Cyrillic and Greek letters that are drawn like Latin ones."""
_MIXED = re.compile(r"[a-zA-Z][\u0370-\u052f]|[\u0370-\u052f][a-zA-Z]")


def find_injection(text: str) -> Counter[str]:
    """Count `injection` and `template_token` findings."""
    found: Counter[str] = Counter()
    plain = unicodedata.normalize("NFKC", text) if not text.isascii() else text
    if not plain.isascii() and _MIXED.search(plain):
        plain = plain.translate(_LOOK_ALIKES)
    lowered = plain.lower()
    spans: set[int] = set()
    for words, pattern in _PATTERNS:
        if any(word in lowered for word in words):
            spans.update(match.end() for match in pattern.finditer(plain))
    if spans:
        found["injection"] = len(spans)
    if any(word in lowered for word in _TEMPLATE_WORDS) and (count := sum(1 for _ in _TEMPLATE.finditer(text))):
        found["template_token"] = count
    return found
