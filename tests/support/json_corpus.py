"""Documents that a JSON parser must refuse, and ones it must read: grammar, numbers, strings, structure, encodings.

Made from rules, in the spirit of Seriot's parsing survey: each family is one way in which real parsers disagree.
"""

from __future__ import annotations


def _wrap(*values: str) -> list[bytes]:
    """Each value alone, in an array and in an object, since parsers err differently in each."""
    return [
        form.replace("@", value).encode("utf-8", "surrogatepass")
        for value in values
        for form in ("@", "[@]", '{"a":@}', "[1,@,2]")
    ]


_NUMBERS = _wrap(
    "01", "-01", "+1", "1.", ".5", "-.5", "1e", "1e+", "1E-", "0x10", "1_000", "--1", "-", "1.2.3", "1e1.5",
    "NaN", "-NaN", "Infinity", "-Infinity", "nan", "inf", "1f", "0b1", "1 2", "１", "∞", "-foo", "2.e3", "0e", "1ea",
)  # fmt: skip
_WORDS = _wrap("True", "FALSE", "nul", "nulll", "tru", "undefined", "None", "truefalse", "'a'", "a", "/*x*/1", "//x\n1")
_STRINGS = _wrap(
    '"', '"a', 'a"', '"\\x41"', '"\\u12"', '"\\u12G4"', '"\\U0041"', '"\\', '"\\"', '"\\ "', '"\\a"', '"\n"', '"\t"',
    '"\x00"', '"\x1f"', '"\\ud800"', '"\\udc00"', '"\\ud800\\ud800"', '"\\udc00\\ud800"', '"\\ud800x"', '"\\ud83d\\u"',
    '"\ud800"', '"\udfff"', '"a""b"', '"\\ud800\\n"',
)  # fmt: skip
_STRUCTURE = [
    text.encode()
    for text in (
        "", " ", "\n", "[", "]", "{", "}", "[}", "{]", "[,]", "[1,]", "[,1]", "[1,,2]", "[1 2]", "[1", "1]", "[[1]",
        '{"a"}', '{"a":}', '{:1}', '{"a":1,}', '{,"a":1}', '{"a" 1}', '{"a":1 "b":2}', '{"a":1,,"b":2}', "{a:1}",
        "{'a':1}", "{1:1}", "{null:1}", '{"a":1}}', '{"a":1}{"b":2}', "[] []", "[]x", "x[]", '{"a":1', '{"a', '{"',
        '["a"', '["a",', "{[]:1}", '{"a"::1}', '{"a":1:2}', "[1;2]", "<a/>", "[1]\x00", "\x0c[1]", "[\x0b1]",
        "[\u00a01]", "[\u20281]", "#1", "[1]//", "[1]/**/", "{}{}", "\\u005b1]", "@", "...", "[...]",
        '{"a":1,"a":2}', '{"":1,"":2}', '[{"b":{"c":1,"c":1}}]', '{"a\\u0000":1,"a\\u0000":2}', '{"a":1,"\\u0061":2}',
    )
]  # fmt: skip
_DOCUMENT = '{"a": [1, "é€😀"]}'
_ENCODINGS = [
    b"\xef\xbb\xbf" + _DOCUMENT.encode(),
    *(_DOCUMENT.encode(name) for name in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le")),
    "é".encode("latin-1"),
    *(b'["' + bad + b'"]' for bad in (
        b"\x80", b"\xc0\x80", b"\xc1\xbf", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80",
        b"\xff", b"\xfe", b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"\xe9t\xe9", b"\xc3\x28")),
    b'{"\xff": 1}',
    b"[\xff]",
]  # fmt: skip
INVALID: list[bytes] = [*_NUMBERS, *_WORDS, *_STRINGS, *_STRUCTURE, *_ENCODINGS]

VALID: list[bytes] = [
    text.encode()
    for text in (
        "0", "-0", "1e5", "1E-2", "-1.5e+3", "true", "null", '""', "[]", "{}", " [1 , 2]\n", '\t{"a"\r:\n1 }', '{"":0}',
        '"\\u0000"', '"\\ud83d\\ude00"', '"\\/\\b\\f\\n\\r\\t\\"\\\\"', '"\u2028\u2029\u007f"', '"\U0010ffff"',
        '"\\uFFFF"',
        '{"a":{"a":{"a":1}}}', '["a","a"]', "[1.7976931348623157e308]", "123456789012345678", '{"a b":1,"a  b":2}',
        '"\\\\"', '["\\\\\\"]:{", "}"]', '{"x:y":"a\\":b"}', '[":"]', '{"A":1,"a":2}',
    )
]  # fmt: skip
