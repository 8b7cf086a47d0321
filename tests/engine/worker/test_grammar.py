"""Grammars from outside: what is refused, why, and that llama.cpp agrees with what is not."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lathe.engine.errors import UsageError
from lathe.engine.worker.grammar import MAX_BYTES, checked_grammar

GOOD = [
    'root ::= "a"',
    'root ::= "" "a"',
    'root ::= [a-z]+ ("-" [0-9]{1,3})? # comment\n',
    'root ::= item (", " item)*\nitem ::= [^,\\x00-\\x1F] | "\\"" .* "\\""',
    'root ::=\n  "a" |\n  b\nb ::= "x" root "y" | "z"',
    '\n\n# nothing\nroot ::= ( ( "a" | "b" )\n "c" ){2}\r\nother-rule ::= root',
    'root ::= "\\u00e9\\U0001F30D\\t\\n\\\\"',
    "root ::= [\\]\\-\\[]",
    'root ::= "a"{2000}',
    'root ::= ("a"{10}){200}',
    'root ::= <[17]> !<[18]> "x"',
    'root ::= ("a"?){0,20} "b"',
    'root ::= ("a"' + "?" * 600 + ")",
    "root ::= " + "e " * 20_000 + '"x"\ne ::= ',
]

BAD = {
    "nothing": ("", "root"),
    "no root": ('main ::= "a"', "root"),
    "unclosed literal": ('root ::= "a', "line 1, column"),
    "unclosed class": ("root ::= [a-", "column"),
    "unclosed group": ('root ::= ("a"', "expected )"),
    "no arrow": ('root = "a"', "::="),
    "underscore": ('my_rule ::= "a"', "::="),
    "undefined": ("root ::= missing", "missing is not defined"),
    "left recursion": ('root ::= root "a" | "b"', "left recursion"),
    "indirect left recursion": ('root ::= a\na ::= b "x"\nb ::= a | "y"', "left recursion"),
    "left recursion behind something empty": ('root ::= e root "a"\ne ::= "x"?', "left recursion"),
    "repetition of nothing": ('root ::= "x" ("a"*)*', "without end"),
    "nothing to repeat": ("root ::= *", "repeat"),
    "huge repetition": ('root ::= "a"{1,1000000000}', "1000000000"),
    "absurd repetition": ('root ::= "a"{' + "9" * 5000 + "}", "number"),
    "repetitions that multiply": ('root ::= ("a"{100}){100}', "multiply to 10000"),
    "repetitions that multiply through groups": ('root ::= ((("a"{20}) "b"){20}){20}', "multiply"),
    "a long literal repeated": ('root ::= "' + "a" * 60_000 + '"{2000}', "unfold"),
    "backwards repetition": ('root ::= "a"{3,2}', "asks for more"),
    "backwards range": ("root ::= [z-a]", "backwards"),
    "empty class": ("root ::= []", "empty"),
    "unknown escape": ('root ::= "\\q"', "escape"),
    "bad hexadecimal": ('root ::= "\\xZZ"', "hexadecimal"),
    "no character": ('root ::= "\\UFFFFFFFF"', "no character"),
    "nul": ('root ::= "a\0b"', "NUL"),
    "too deep": ("root ::= " + "(" * 65 + '"a"' + ")" * 65, "64 deep"),
    "60,000 deep": ("root ::= " + "(" * 60_000 + '"a"', "64 deep"),
    "too big": ('root ::= "' + "é" * MAX_BYTES + '"', "bytes"),
    "long chain": (
        'root ::= r1\n' + "\n".join(f"r{i} ::= r{i + 1}" for i in range(1, 3000)) + '\nr3000 ::= "a"', "begin with"
    ),
    "long chain of what may be empty": (
        "root ::= 1\n" + "\n".join(f"{i} ::= {i + 1}" for i in range(1, 4800)) + '\n4800 ::= ""', "begin with"
    ),
    "repetitions of repetitions that multiply": ('root ::= ("a"' + "?" * 600 + "{50}){50}", "multiply"),
    "too many ways": ("root ::= " + ' '.join('"a"?' for _ in range(9000)), "ways"),
    "many ways through repetition": ('root ::= ("a"?){0,2000}', "ways"),
    "bad token id": ("root ::= <[x]>", "token id"),
}  # fmt: skip


@pytest.mark.parametrize("grammar", GOOD)
def test_good_grammars_pass_unchanged(grammar: str) -> None:
    assert checked_grammar(grammar) == grammar


@pytest.mark.parametrize("name", BAD)
def test_bad_grammars_are_refused_with_the_reason_and_soon(name: str) -> None:
    grammar, reason = BAD[name]
    begun = time.process_time()
    with pytest.raises(UsageError) as refused:
        checked_grammar(grammar)
    assert reason in refused.value.message
    assert refused.value.code == "E_GRAMMAR"
    assert len(refused.value.message) < 200
    assert time.process_time() - begun < 5, "far beyond the 0.1 s that it takes"


# -- against llama.cpp ------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def native(embedded_gguf: Path) -> Iterator[Callable[[str], bool]]:
    """Whether llama.cpp takes a grammar."""
    from lathe.engine.native.llama import LlamaModel, bindings

    lib: Any = bindings()
    with LlamaModel(embedded_gguf, vocab_only=True) as model:

        def takes(grammar: str) -> bool:
            sampler = lib.llama_sampler_init_grammar(model.vocab, grammar.encode(), b"root")
            if sampler:
                lib.llama_sampler_free(sampler)
            return bool(sampler)

        yield takes


@pytest.mark.native
@pytest.mark.parametrize("grammar", GOOD)
def test_llama_cpp_takes_what_passes(native: Callable[[str], bool], grammar: str) -> None:
    assert native(grammar)


PIECES = st.lists(
    st.sampled_from(
        ['"a"', '"b"', "[a-c]", "[^x]", ".", "(", ")", "|", "*", "+", "?", "{2}", "{0,3}", "{1,}", "x", "y", "root",
         " ", "\n", "\nx ::= ", "\ny ::= ", "::=", "# c\n", '""', "{", "]", '"'],
    ),
    max_size=14,
)  # fmt: skip


@pytest.mark.native
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(PIECES)
def test_whatever_passes_here_passes_there(native: Callable[[str], bool], pieces: list[str]) -> None:
    grammar = "root ::= " + "".join(pieces)
    try:
        checked_grammar(grammar)
    except UsageError:
        return
    assert native(grammar)
