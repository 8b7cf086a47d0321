"""Prompts that do not fit: counted, refused, or cut as a policy says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lathe.engine.errors import UsageError
from lathe.engine.worker.fitting import fit


@given(
    st.integers(1, 60), st.none() | st.integers(0, 60), st.integers(1, 50),
    st.sampled_from(["refuse", "truncate_left", "truncate_middle"]), st.integers(0, 1),
)  # fmt: skip
def test_what_fits_fits_and_what_is_cut_is_counted(
    count: int, max_tokens: int | None, context: int, policy: str, keep: int
) -> None:
    tokens = list(range(count))
    try:
        fitted = fit(tokens, max_tokens, context, policy, keep_first=keep)  # type: ignore[arg-type]
    except UsageError as error:
        assert error.code == "E_CONTEXT_OVERFLOW"
        assert count + (1 if max_tokens is None else max_tokens) > context
        return
    assert len(fitted.tokens) + fitted.max_tokens <= context
    assert len(fitted.tokens) + fitted.truncated == count
    assert fitted.max_tokens >= (1 if max_tokens is None else 0)
    if max_tokens is not None:
        assert fitted.max_tokens == max_tokens
    if fitted.truncated:
        assert policy != "refuse"
        assert fitted.tokens[:keep] == tokens[:keep]
        assert fitted.tokens[-1] == tokens[-1]
        assert fitted.tokens == sorted(fitted.tokens)


def test_policies_keep_what_they_name() -> None:
    assert fit(list(range(10)), 2, 6, "truncate_left", keep_first=1).tokens == [0, 7, 8, 9]
    assert fit(list(range(10)), 2, 6, "truncate_middle").tokens == [0, 1, 8, 9]


def test_the_refusal_names_the_counts() -> None:
    with pytest.raises(UsageError, match=r"10 tokens and an answer of 5 does not fit the context of 12"):
        fit(list(range(10)), 5, 12, "refuse")


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(UsageError, match="empty"):
        fit([], 5, 12, "refuse")
