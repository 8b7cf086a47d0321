"""ctransformers' C interface, as far as it is used, and the vocabulary that it knows.

Invariant: nothing but these calls reaches the library, with lengths that were checked here.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from lathe.engine.checkup.install import extra
from lathe.engine.errors import DataError, InternalError, UnavailableError, UsageError

CHUNK = 64
"""Prompt tokens computed in one call."""
CONVERT = "`lathe convert FILE` makes a GGUF of it, which llama.cpp serves in batches"


class LegacyVocabulary:
    """ctransformers' vocabulary; it has no control tokens that a text could name."""

    controls: dict[str, int] = {}  # noqa: RUF012 - empty for good

    def __init__(self, model: Native, *, adds_bos: bool) -> None:
        self._model = model
        self.adds_bos = adds_bos
        self.size = model.vocabulary
        self.bos: int = model.bos if 0 <= model.bos < self.size else -1
        self.eos: int = model.eos if 0 <= model.eos < self.size else -1
        self.ends: frozenset[int] = frozenset(token for token in range(self.size) if model.ends(token))
        self._pieces: list[bytes | None] = [None] * self.size

    def encode(self, text: str, *, special: bool = False, ends: bool = False) -> list[int]:
        """Text to tokens; nothing in it is a control token. Llama's begins with a space, as it was trained."""
        begins = ends and self.adds_bos
        data = (f" {text}" if begins else text).encode("utf-8", "replace").replace(b"\0", b"")
        return self._model.tokenize(data, begins)

    def checked(self, tokens: Sequence[int]) -> list[int]:
        """Ids from outside, refused where the vocabulary has none of them."""
        for token in tokens:
            if not 0 <= token < self.size:
                raise UsageError(f"token {token} is not in the vocabulary of {self.size}")
        return list(tokens)

    def piece(self, token: int) -> bytes:
        """The bytes of a token; those that begin and end a text show nothing."""
        found = self._pieces[token]
        if found is None:
            shows = token not in self.ends and token != self.bos
            found = self._pieces[token] = self._model.piece(token) if shows else b""
        return found

    def name(self, token: int) -> bytes:
        """The bytes of any token."""
        return self.piece(token) or self._model.piece(token)

    def decode(self, tokens: Sequence[int]) -> str:
        """Ids to text."""
        return b"".join(map(self.name, self.checked(tokens))).decode("utf-8", "replace")

    def pair(self, query: str, text: str) -> list[int]:
        """No model of that time ranks."""
        raise UsageError("this model cannot rank", code="E_CAPABILITY")

    def strips(self, name: str) -> tuple[bool, bool]:
        """No control token, no stripping."""
        return False, False

    @property
    def bos_name(self) -> str:
        """The name of the token that begins a text."""
        return self._model.piece(self.bos).decode("utf-8", "replace") if self.bos >= 0 and self.adds_bos else ""

    @property
    def eos_name(self) -> str:
        """The name of the token that ends one."""
        return self._model.piece(self.eos).decode("utf-8", "replace") if self.eos >= 0 else ""

    @property
    def affixes(self) -> tuple[list[int], list[int]]:
        """What the model wants before and after a text."""
        return [self.bos] if self.adds_bos and self.bos >= 0 else [], []


class Native:
    """ctransformers' C interface, as far as it is used."""

    def __init__(self, model: Any, threads: int) -> None:
        self._keep = model
        """Frees the model when it goes."""
        self._threads = threads
        self.context_length: int = model.context_length
        self.vocabulary: int = model.vocab_size
        self.bos: int = model.bos_token_id
        self.eos: int = model.eos_token_id

    def tokenize(self, text: bytes, bos: bool) -> list[int]:
        """Bytes to tokens; at most one per byte, and one in front."""
        room = (ctypes.c_int * (len(text) + 2))()
        count = self._keep.ctransformers_llm_tokenize(text, bos, room)
        return list(room[: max(0, count)])

    def piece(self, token: int) -> bytes:
        """The bytes of a token."""
        found: bytes | None = self._keep.ctransformers_llm_detokenize(token)
        return found or b""

    def ends(self, token: int) -> bool:
        """Whether it ends a text."""
        return bool(self._keep.ctransformers_llm_is_eos_token(token))

    def compute(self, tokens: list[int], known: int) -> None:
        """Compute tokens behind the first `known` ones.

        Raises:
            InternalError: the library could not.
        """
        array = (ctypes.c_int * len(tokens))(*tokens)
        if not self._keep.ctransformers_llm_batch_eval(array, len(tokens), known, CHUNK, self._threads):
            raise InternalError("ctransformers could not compute a batch")

    def logits(self) -> npt.NDArray[np.float32]:
        """The logits after the last token."""
        size = self._keep.ctransformers_llm_logits_size()
        if size < self.vocabulary:
            raise InternalError(f"ctransformers gave {size} logits for a vocabulary of {self.vocabulary}")
        data = self._keep.ctransformers_llm_logits_data()
        rows = np.ctypeslib.as_array(data, (size,))
        return rows[-self.vocabulary :].copy()


def open_model(path: str, kind: str, context: int, threads: int) -> Native:
    try:
        from ctransformers.llm import LLM, Config
    except ModuleNotFoundError as error:
        raise UnavailableError(
            "models from before GGUF need ctransformers, which is not installed",
            hint=f"{extra('legacy')}; or {CONVERT}",
        ) from error
    try:
        model = LLM(path, kind, config=Config(context_length=context, threads=threads, batch_size=CHUNK))
    except OSError as error:
        line = str(error).strip().splitlines()[0]
        raise UnavailableError(f"ctransformers has no build for this machine: {line}", hint=CONVERT) from error
    except RuntimeError as error:
        raise DataError(
            f"ctransformers cannot load {Path(path).name} as {kind}: the worker's log has its reason", hint=CONVERT,
            code="E_LEGACY",
        ) from error  # fmt: skip
    return Native(model, threads)
