"""Choosing the next token: llama.cpp's sampler chain, built from `Sampling`.

The order is llama.cpp's: logit bias, penalties, DRY, top-k, typical, top-p, min-p, XTC, temperature, draw. A grammar
stands outside the chain: the chain draws freely first, and only when the grammar refuses the token are all candidates
filtered by it and one is drawn anew; most tokens pass, and filtering a vocabulary costs milliseconds. Invariant: no
value reaches native code that `generation.check` and the vocabulary have not bounded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from lathe.engine.errors import InternalError, UsageError
from lathe.engine.generation import Sampling
from lathe.quantize.libllama import bindings

_BREAKERS = (b"\n", b":", b'"', b"*")
"""Where DRY stops looking for repetition; llama.cpp's default."""
_MIROSTAT_CANDIDATES = 100
_KEEP = 1
_FORBIDDEN = -100.0

_CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
"""llama_token_data."""


class Sampler:
    """The sampler of one choice; owns its native chain."""

    def __init__(
        self,
        sampling: Sampling,
        *,
        vocab: Any,
        n_vocab: int,
        context: int,
        seed: int,
        end_tokens: Sequence[int],
        grammar: str | None = None,
    ) -> None:
        """Build the chain; touches the vocabulary only, so any thread may.

        Args:
            vocab: llama.cpp's vocabulary; None where the model is another library's: then without grammar and DRY.
            context: tokens per sequence; what -1 means for a window.
            seed: of this choice.
            end_tokens: tokens that end a generation; forbidden with `ignore_eos`.
            grammar: checked GBNF with a rule `root`.

        Raises:
            UsageError: a biased token is not in the vocabulary, or llama.cpp refuses the grammar.
        """
        self._chain: int | None = None
        self._grammar: int | None = None
        self._lib = lib = bindings()
        self._n_vocab = n_vocab
        bias = _bias(sampling, n_vocab, end_tokens)
        penalties = sampling.repeat_penalty != 1 or sampling.frequency_penalty != 0 or sampling.presence_penalty != 0
        dry = sampling.dry_multiplier != 0 and sampling.dry_penalty_last_n != 0
        self.remembers: int = max(
            _window(sampling.repeat_last_n, context) if penalties else 0,
            _window(sampling.dry_penalty_last_n, context) if dry else 0,
        )
        """How many of the latest tokens it must have seen; the prompt's end is fed to `remember`."""
        self.greedy: bool = sampling.temperature == 0 and not (bias or self.remembers or grammar)
        """Whether the most probable token is the answer, so that the chain is not needed."""
        if self.greedy:
            return
        if grammar is not None:
            self._grammar = lib.llama_sampler_init_grammar(vocab, grammar.encode(), b"root")
            if not self._grammar:
                raise UsageError("the grammar was refused by llama.cpp", hint="its log has the line", code="E_GRAMMAR")
        self._chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        if bias:
            entries = (lib.llama_logit_bias * len(bias))(*bias.items())
            self._add(lib.llama_sampler_init_logit_bias(n_vocab, len(bias), entries))
        if penalties:
            self._add(
                lib.llama_sampler_init_penalties(
                    n_vocab, _window(sampling.repeat_last_n, context), sampling.repeat_penalty,
                    sampling.frequency_penalty, sampling.presence_penalty,
                )
            )  # fmt: skip
        if dry:
            breakers = (ctypes.c_char_p * len(_BREAKERS))(*_BREAKERS)
            self._add(
                lib.llama_sampler_init_dry(
                    vocab, sampling.dry_multiplier, sampling.dry_base, sampling.dry_allowed_length,
                    _window(sampling.dry_penalty_last_n, context), breakers, len(_BREAKERS),
                )
            )  # fmt: skip
        self._add_draw(sampling, seed)

    def _add_draw(self, sampling: Sampling, seed: int) -> None:
        lib = self._lib
        if sampling.temperature == 0:
            self._add(lib.llama_sampler_init_greedy())
            return
        if sampling.mirostat:
            self._add(lib.llama_sampler_init_temp(sampling.temperature))
            tau, eta = sampling.mirostat_tau, sampling.mirostat_eta
            if sampling.mirostat == 1:
                self._add(lib.llama_sampler_init_mirostat(self._n_vocab, seed, tau, eta, _MIROSTAT_CANDIDATES))
            else:
                self._add(lib.llama_sampler_init_mirostat_v2(seed, tau, eta))
            return
        if 0 < sampling.top_k < self._n_vocab:
            self._add(lib.llama_sampler_init_top_k(sampling.top_k))
        if sampling.typical_p < 1:
            self._add(lib.llama_sampler_init_typical(sampling.typical_p, _KEEP))
        if sampling.top_p < 1:
            self._add(lib.llama_sampler_init_top_p(sampling.top_p, _KEEP))
        if sampling.min_p > 0:
            self._add(lib.llama_sampler_init_min_p(sampling.min_p, _KEEP))
        if sampling.xtc_probability > 0:
            self._add(
                lib.llama_sampler_init_xtc(sampling.xtc_probability, sampling.xtc_threshold, _KEEP, (seed + 1) % 2**32)
            )
        self._add(lib.llama_sampler_init_temp(sampling.temperature))
        self._add(lib.llama_sampler_init_dist(seed))

    def _add(self, sampler: int) -> None:
        self._lib.llama_sampler_chain_add(self._chain, sampler)

    def remember(self, tokens: Sequence[int]) -> None:
        """Show the chain the prompt's last tokens, for penalties on repetition."""
        if self.remembers:
            for token in tokens[-self.remembers :]:
                self._lib.llama_sampler_accept(self._chain, token)

    def sample(self, context: Any, index: int, logits: npt.NDArray[np.float32]) -> int:
        """Draw a token and remember it.

        Args:
            context: llama.cpp's context, after a decode; None: `logits` are all there is.
            index: of the token in the batch whose logits to use.
            logits: the same logits, n_vocab of them; not changed.

        Raises:
            UsageError: the grammar allows no token here.
        """
        if self.greedy:
            return int(logits.argmax())
        if self._grammar is None:
            if context is not None:
                token: int = self._lib.llama_sampler_sample(self._chain, context, index)
                return token
            token = self._apply(self._chain, np.empty(self._n_vocab, _CANDIDATE), logits)
            self._lib.llama_sampler_accept(self._chain, token)
            return token
        token = self._constrained(logits)
        self._lib.llama_sampler_accept(self._chain, token)
        self._lib.llama_sampler_accept(self._grammar, token)
        return token

    def _constrained(self, logits: npt.NDArray[np.float32]) -> int:
        candidates = np.empty(self._n_vocab, _CANDIDATE)
        token = self._apply(self._chain, candidates, logits)
        single = np.array([(token, 0.0, 0.0)], _CANDIDATE)
        self._lib.llama_sampler_apply(self._grammar, _array(self._lib, single))
        if np.isfinite(single["logit"][0]):
            return token
        # The draw was refused: filter everything, then draw again.
        candidates["id"] = np.arange(self._n_vocab, dtype=np.int32)
        candidates["logit"] = logits
        self._lib.llama_sampler_apply(self._grammar, _array(self._lib, candidates))
        allowed = candidates[np.isfinite(candidates["logit"])]
        if not len(allowed):
            raise UsageError("the grammar allows no token of this model here", code="E_GRAMMAR")
        return self._select(self._chain, allowed)

    def _apply(self, sampler: int | None, candidates: npt.NDArray[Any], logits: npt.NDArray[np.float32]) -> int:
        candidates["id"] = np.arange(self._n_vocab, dtype=np.int32)
        candidates["logit"] = logits
        return self._select(sampler, candidates)

    def _select(self, sampler: int | None, candidates: npt.NDArray[Any]) -> int:
        array = _array(self._lib, candidates)
        self._lib.llama_sampler_apply(sampler, array)
        if not 0 <= array.selected < array.size:
            raise InternalError(f"the sampler chain selected nothing among {array.size} candidates")
        return int(array.data[array.selected].id)

    def close(self) -> None:
        """Free the native chain."""
        for sampler in (self._chain, self._grammar):
            if sampler:
                self._lib.llama_sampler_free(sampler)
        self._chain = self._grammar = None

    def __del__(self) -> None:
        self.close()


def _array(lib: Any, candidates: npt.NDArray[Any]) -> Any:
    """A view of candidates as llama_token_data_array; valid while `candidates` lives."""
    data = ctypes.cast(candidates.ctypes.data, lib.llama_token_data_p)
    return lib.llama_token_data_array(data, len(candidates), -1, False)


def _window(last_n: int, context: int) -> int:
    return context if last_n < 0 else min(last_n, context)


def _bias(sampling: Sampling, n_vocab: int, end_tokens: Sequence[int]) -> dict[int, float]:
    bias = {}
    for token, value in sampling.logit_bias.items():
        if token >= n_vocab:
            raise UsageError(f"logit_bias: token {token} is not in the vocabulary of {n_vocab}")
        bias[token] = float("-inf") if value <= _FORBIDDEN else value
    if sampling.ignore_eos:
        bias.update(dict.fromkeys(end_tokens, float("-inf")))
    return bias
