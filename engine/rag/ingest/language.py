"""Which language a text is in: by its script, then by its commonest words. Small, offline, and silent when unsure.

Invariant: None rather than a guess: a text of fewer than twenty words, of code, or whose best two languages are close
has no language.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_SAMPLE = 4_000
_LEAST_WORDS = 20
_LEAST_SHARE = 0.12
"""Of all words that are the language's commonest; running text has 0.25 and more."""
_LEAST_LEAD = 1.25
_LEAST_VARIETY = 4
"""Different ones among them: `y` in code is no Spanish."""
_WORD = re.compile(r"[^\W\d_]+")
_LETTER = re.compile(r"[^\W\d_]")
_FOREIGN = re.compile("[^\\W\\d_\0-\u024f\u1e00-\u1eff]")
"""A letter that is not Latin."""

_COMMON = {
    "en": "the of and to in a is that for it as was with be by on not he his but are this have from they which"
    " you were their has would what will can been there if more when no than",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden"
    " aus er hat dass sie nach wird bei einer um am sind noch wie einem über einen zum wir",
    "fr": "de la le et les des en un du une que est pour qui dans par sur pas plus au il ce se ne avec sont ou"
    " son aux comme mais cette nous vous ces leur été être elle tout",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como más pero sus le ya o este"
    " sí porque esta entre cuando muy sin sobre también me hasta hay",
    "it": "di e il la che in un a per è del non una sono le con si da come dei nel alla più ha della al gli"
    " anche ma lo questo i dalla delle nella suo essere stato tra quando",
    "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao ele das tem"
    " à seu sua ou ser quando muito há nos já está também pelo",
    "nl": "de van het een en in is dat op te zijn met voor niet aan er om ook als dan maar bij door uit naar"
    " nog wordt of worden deze heeft kan over hij tot werd dit hun meer geen",
    "sv": "och i att det som en på är av för med till den har de inte om ett han men var jag sig från vi så kan"
    " när år under också efter eller nu sin där vid mot skulle",
    "da": "og i at det er en til af på for med de den som har ikke der et om var han men fra sig kan vi så hun"
    " havde også efter eller nu blev skal ved over mod bliver",
    "no": "og i å det er en til av på for med de som har ikke et om var han men fra seg kan vi så hun hadde"
    " også etter eller nå ble skal ved over mot blir fra sin",
    "fi": "ja on ei se että hän oli joka mutta myös ovat kun niin tai kuin mukaan vain jos olla sen ole hänen"
    " voi sitä jo sekä ollut vuonna kanssa nyt näin sitten",
    "pl": "i w na z się nie do to że jest o jak za od po przez dla co ale jego oraz są być tym był może który"
    " które już tylko jej ich czy także ze ma",
    "cs": "a v se na je že s z do o to i za by ve jako pro k po jsou od ale jeho který nebo byl které jsem však"
    " být není také podle jeho až při",
    "tr": "ve bir bu da de için ile olarak çok daha olan gibi en ne kadar sonra ya o var olduğu ancak ise veya"
    " her bunun değil tarafından şey ama",
    "ro": "de și în a la cu pe nu o că este din un care mai pentru sunt al ale au fost se sau prin ca dar după"
    " fi între lui cel această",
    "hu": "a az és hogy nem is egy ez meg volt csak de már vagy mint még ki azt el kell ha van lehet több után"
    " között majd szerint amely",
    "id": "yang dan di dengan untuk dari ini itu dalam tidak pada adalah ke akan oleh sebagai juga atau dapat"
    " telah karena bahwa lebih mereka kami ada",
    "vi": "và của là có các được cho một trong không với những người này đã khi để từ về theo đến như cũng tại",
}
_INDEX: dict[str, tuple[str, ...]] = {}
for _language, _words in _COMMON.items():
    for _word in _words.split():
        if _language not in _INDEX.get(_word, ()):
            _INDEX[_word] = (*_INDEX.get(_word, ()), _language)

_SCRIPTS = {
    "HANGUL": "ko", "THAI": "th", "HEBREW": "he", "GREEK": "el", "ARMENIAN": "hy", "GEORGIAN": "ka", "TAMIL": "ta",
    "TELUGU": "te", "BENGALI": "bn", "GUJARATI": "gu", "KANNADA": "kn", "MALAYALAM": "ml", "SINHALA": "si",
    "KHMER": "km", "LAO": "lo", "MYANMAR": "my",
}  # fmt: skip
"""Scripts that one language is by far the most written in."""


def guess_language(text: str) -> str | None:
    """The language as ISO 639-1, or None."""
    sample = text[:_SAMPLE]
    letters = len(_LETTER.findall(sample))
    if letters < 2 * _LEAST_WORDS:
        return None
    foreign = _FOREIGN.findall(sample)
    if len(foreign) < letters // 10:
        return _latin(sample)
    scripts = Counter(map(_script, foreign))
    scripts["LATIN"] += letters - len(foreign)
    kana = scripts["HIRAGANA"] + scripts["KATAKANA"]
    if kana + scripts["CJK"] > letters // 2:
        return "ja" if kana > letters // 10 else "zh"
    script, count = scripts.most_common(1)[0]
    if count < 0.6 * letters:
        return None
    if script == "CYRILLIC":
        return _cyrillic(sample)
    if script == "ARABIC":
        return _arabic(sample)
    if script != "LATIN":
        return _SCRIPTS.get(script)
    return _latin(sample)


def _script(character: str) -> str:
    return unicodedata.name(character, "").partition(" ")[0].partition("-")[0]


def _latin(sample: str) -> str | None:
    words = [word.lower() for word in _WORD.findall(sample)]
    if len(words) < _LEAST_WORDS:
        return None
    scores = Counter(language for word in words for language in _INDEX.get(word, ()))
    variety = Counter(language for word in set(words) for language in _INDEX.get(word, ()))
    ranked = scores.most_common(2)
    if not ranked or ranked[0][1] < _LEAST_SHARE * len(words):
        return None
    if variety[ranked[0][0]] < _LEAST_VARIETY:
        return None
    if len(ranked) > 1 and ranked[0][1] < _LEAST_LEAD * ranked[1][1]:
        return None
    return ranked[0][0]


def _cyrillic(sample: str) -> str | None:
    """Letters that only one of the languages has; Russian and Bulgarian differ by `ы` and `э`."""
    lowered = sample.lower()
    if any(letter in lowered for letter in "їєґ"):
        return "uk"
    if "ў" in lowered:
        return "be"
    if any(letter in lowered for letter in "ђћџљњј"):
        return "sr"
    if any(letter in lowered for letter in "ыэё"):
        return "ru"
    return "bg" if lowered.count("ъ") > len(lowered) // 200 else None


def _arabic(sample: str) -> str:
    if any(letter in sample for letter in "ٹڈڑےں"):
        return "ur"
    return "fa" if any(letter in sample for letter in "پچژگ") else "ar"
