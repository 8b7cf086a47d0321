"""Personal data and secrets in text: found by form and confirmed by check digits, so that few ordinary numbers are hit.

Patterns find candidates; python-stdnum confirms card, bank and identity numbers, phonenumbers confirms telephone
numbers. Invariant: findings do not overlap and stand in order; nothing found here is ever logged.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import import_module
from string import ascii_uppercase
from typing import NamedTuple


class Finding(NamedTuple):
    """A span of text and what it is."""

    start: int
    end: int
    kind: str


_EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,62})\.){1,8}[a-zA-Z]{2,24}(?![\w-])")
_SECRET = re.compile(
    r"-----BEGIN (?:[A-Z]+ ){0,2}PRIVATE KEY-----[\s\S]{0,8192}?-----END (?:[A-Z]+ ){0,2}PRIVATE KEY-----"
    r"|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_\w{40,}\b|\bxox[abprs]-[\w-]{10,}"
    r"|\bsk-(?:[a-z]+-)?[A-Za-z0-9_-]{20,}|\bhf_[A-Za-z0-9]{30,}\b|\bAIza[\w-]{35}\b|\bglpat-[\w-]{20,}"
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]{10,}"
    r"|(?i:\b(?:password|passwd|secret|api[_-]?key|access[_-]?token)\b[\"']?\s*[:=]\s*[\"'](?=[^\"'\s]*\d)[^\"'\s]{8,}[\"'])"
)
_SECRET_WORDS = (
    "PRIVATE KEY", "AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "xox", "sk-", "hf_", "AIza",
    "glpat-", "eyJ", "assw", "ASSW", "ecret", "ECRET", "pi_key", "PI_KEY", "pi-key", "pikey", "_token", "-token",
    "TOKEN",
)  # fmt: skip
"""One of these occurs in each of them, and in little else."""
_IBAN = re.compile(r"\b(?=([A-Z]{2}\d{2}(?:[ ]?[A-Z0-9]{4}){2,7}(?:[ ]?[A-Z0-9]{1,4})?)\b)")
"""Looks ahead only: what seems to be the end of one can be the next one."""
_DIGITS = str.maketrans({letter: str(int(letter, 36)) for letter in ascii_uppercase} | {" ": ""})
"""A is 10, Z is 35."""
_CARD = re.compile(r"(?<![\d.-])[3-6]\d{3}(?:([ -]?)\d{4}\1\d{4}\1\d{1,7}|([ -]?)\d{6}\2\d{5})(?![.-]?\d)")
_PHONE = re.compile(r"\+\s?\d[\d\s()./-]{6,}\d")
_LOCAL_PHONE = re.compile(r"(?<![\d.])\(?0\d[\d\s()./-]{5,}\d|\(\d{3}\)\s?\d{3}[ -]\d{4}|\b\d{3}[ .-]\d{3}[ .-]\d{4}\b")

_IDENTITIES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b\d{3}-\d{2}-\d{4}\b"), "stdnum.us.ssn"),
    (re.compile(r"\b(?:\d{8}|[XYZ]\d{7})-?[A-HJ-NP-TV-Z]\b"), "stdnum.es.nif"),
    (re.compile(r"\b[A-Z]{6}\d{2}[A-EHLMPRST]\d{2}[A-Z]\d{3}[A-Z]\b"), "stdnum.it.codicefiscale"),
    (
        re.compile(r"\b[12][ ]?\d{2}[ ]?(?:0[1-9]|1[0-2])[ ]?(?:\d{2}|2[AB])[ ]?\d{3}[ ]?\d{3}[ ]?\d{2}\b"),
        "stdnum.fr.nir",
    ),
    (re.compile(r"\b\d{3}\.\d{3}\.\d{3}-\d{2}\b"), "stdnum.br.cpf"),
    (re.compile(r"\b\d{6}[-+]\d{4}\b"), "stdnum.se.personnummer"),
    (re.compile(r"\b\d{6}[-+A-F]\d{3}[0-9A-Y]\b"), "stdnum.fi.hetu"),
)
"""Numbers with punctuation or letters of their own; bare runs of eleven digits are too often something else."""


def find_personal(text: str, region: str | None = None) -> list[Finding]:
    """Everything personal in a text; `region` is a country for numbers written without a country code."""
    found: list[Finding] = []
    if "@" in text:
        found.extend(Finding(*match.span(), "email") for match in _EMAIL.finditer(text))
    if any(word in text for word in _SECRET_WORDS):
        found.extend(Finding(*match.span(), "secret") for match in _SECRET.finditer(text))
    if _has_digits(text):
        found.extend(_ibans(text))
        found.extend(_confirmed(_CARD, text, "stdnum.luhn", "card"))
        for pattern, module in _IDENTITIES:
            found.extend(_confirmed(pattern, text, module, "identity"))
        found.extend(_phones(text, region))
    return _apart(found)


def _has_digits(text: str) -> bool:
    """Whether a checked number can be in it at all; eight digits are the fewest that any of them has."""
    return re.search(r"\d(?:[^\d\n]{0,3}\d){7}", text) is not None


def _confirmed(pattern: re.Pattern[str], text: str, module: str, kind: str) -> Iterator[Finding]:
    """Candidates with the right check digits."""
    for match in pattern.finditer(text):
        check = _checker(module)
        candidate = match[0]
        if check is not None and len(set(re.sub(r"\D", "", candidate))) > 1:  # not 0000 0000 0000 0000
            number = re.sub(r"[ -]", "", candidate) if kind == "card" else candidate
            if check(number):
                yield Finding(*match.span(), kind)


def _ibans(text: str) -> Iterator[Finding]:
    """Bank accounts; capitals behind one (`BIC`, `EUR`) look like more of its groups, so these go until it is right."""
    for match in _IBAN.finditer(text):
        check = _checker("stdnum.iban")
        if check is None:
            return
        candidate = match[1]
        while candidate and not (_adds_up(candidate) and check(candidate.replace(" ", ""))):
            candidate = candidate.rpartition(" ")[0]
        if candidate:
            yield Finding(match.start(), match.start() + len(candidate), "iban")


def _adds_up(iban: str) -> bool:
    """Its check digits are right (ISO 7064, mod 97): spares the library nearly all that is none."""
    return int((iban[4:] + iban[:4]).translate(_DIGITS)) % 97 == 1


def _checker(module: str) -> Callable[[str], bool] | None:
    """The library's test of a number; without the library nothing is confirmed and nothing is claimed."""
    try:
        check: Callable[[str], bool] = import_module(module).is_valid
    except ImportError:
        return None
    return check


def _phones(text: str, region: str | None) -> Iterator[Finding]:
    if not _PHONE.search(text) and not (region and _LOCAL_PHONE.search(text)):
        return
    try:
        phonenumbers = import_module("phonenumbers")
    except ImportError:
        return
    for match in phonenumbers.PhoneNumberMatcher(text, region):
        yield Finding(match.start, match.end, "phone")


def _apart(found: list[Finding]) -> list[Finding]:
    """In order, the longer of two that overlap."""
    kept: list[Finding] = []
    for finding in sorted(found, key=lambda finding: (finding.start, finding.start - finding.end)):
        if not kept or finding.start >= kept[-1].end:
            kept.append(finding)
    return kept


def mask(text: str, findings: list[Finding]) -> str:
    """Put `[EMAIL]` and the like where each finding stands."""
    parts: list[str] = []
    end = 0
    for finding in findings:
        parts += (text[end : finding.start], f"[{finding.kind.upper()}]")
        end = finding.end
    return "".join((*parts, text[end:]))
