"""Text that speaks to a model instead of a reader: flagged, shown, and left out where the policy says so.

A flag is a reason to look, not a proof: what protects an answer is that retrieved text is fenced, has no tools and is
never obeyed. The patterns follow the attack families of published corpora (override, new role, addressing the model,
exfiltration, forged turns). Invariant: matching is linear; every gap in a pattern is bounded.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_GAP = r"(?:\W+\w+){0,4}?\W+"
_ORDERS = r"(?:instructions?|prompts?|rules?|guidelines?|directives?|directions?|commands?|orders?|safety\s+measures)"
_INJECTION = re.compile(
    "|".join(
        (
            rf"\b(?:ignore|disregard|forget|override|bypass|neglect|overlook)\b{_GAP}{_ORDERS}\b",
            r"\b(?:ignore|disregard|forget)\s+(?:everything|all|anything)\s+(?:above|before|prior|previous|you)\b",
            r"\byou\s+(?:are|will)\s+now\s+(?:an?\b|the\b|in\b|no\s+longer|act|be|called|operating)",
            r"\b(?:new|updated|real|actual|important)\s+(?:system\s+)?(?:instructions?|prompt|task)\s*(?:for\s+\w+\s*)?:",
            r"\b(?:enter|enable|activate)\s+(?:developer|dan|jailbreak|god|debug)\s+mode\b",
            r"\b(?:reveal|print|repeat|show|output|leak|tell\s+me)\b(?:\W+\w+){0,4}?\W+(?:system|initial|hidden)\s+prompt\b",
            r"\b(?:attention|note|notice|message|instructions?)\s+(?:to|for)\s+(?:all\s+|any\s+|the\s+)?"
            r"(?:ai|a\.i\.|llms?|language\s+models?|(?:ai\s+)?assistants?|chatbots?|gpt)\b",
            r"\bif\s+you\s+are\s+(?:an?\s+)?(?:ai|llm|large\s+language\s+model|language\s+model|ai\s+assistant|chatbot)\b",
            r"\b(?:do\s+not|don'?t|never)\s+(?:tell|inform|mention\s+(?:this|it)\s+to|reveal\s+(?:this|it)\s+to|alert|warn)"
            r"\s+(?:the\s+)?(?:user|human|reader)\b",
            r"\b(?:send|forward|post|transmit|exfiltrate|e-?mail|upload)\b(?:\W+\w+){0,6}?\W+"
            r"(?:conversation|chat\s+history|passwords?|api\s+keys?|credentials|secrets?|system\s+prompt)"
            r"(?:\W+\w+){0,4}?\W+(?:to|at)\b",
            r"!\[[^\]\n]{0,200}\]\(\s*https?://[^)\s]{1,300}[?&][\w-]{1,40}=(?:\{|%7b|<|\[|\$)",
            r"\b(?:ignoriere|vergiss|missachte|ignorieren\s+sie|vergessen\s+sie)\b(?:\W+\w+){0,4}?\W+"
            r"(?:anweisungen|instruktionen|befehle|regeln|vorgaben)\b",
            r"\b(?:ignore[zr]?|oublie[zr]?)\b(?:\W+\w+){0,4}?\W+(?:instructions|consignes|directives|règles)\b",
            r"\b(?:ignora|ignore|olvida|olvide|desconsidere|esqueça|dimentica)\b(?:\W+\w+){0,4}?\W+"
            r"(?:instrucciones|instruções|istruzioni|reglas|regras|regole|órdenes)\b",
            r"\b(?:игнорируй|игнорируйте|забудь|забудьте)\b(?:\W+\w+){0,4}?\W+(?:инструкции|указания|правила)",
            r"(?:忽略|无视|忘记|忽視|無視)[^\n。]{0,12}(?:指令|指示|说明|說明|提示|规则|規則)",
            r"(?:指示|命令|プロンプト|ルール)を(?:すべて|全て)?(?:無視|忘れ)",
        )
    ),
    re.IGNORECASE,
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
    if count := sum(1 for _ in _INJECTION.finditer(plain)):
        found["injection"] = count
    if count := sum(1 for _ in _TEMPLATE.finditer(text)):
        found["template_token"] = count
    return found
