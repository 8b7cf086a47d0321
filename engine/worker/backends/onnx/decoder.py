"""A decoder graph with its past: which tensor is what, and one computation over a few sequences.

Understood are the exports of optimum (`past_key_values.N.key` in, `present.N.key` out, with or without the
`use_cache_branch` of merged files) and graphs that keep to those names. Past and present stay where they were computed:
outputs of one call are bound as inputs of the next. Invariant: a call changes nothing it was given, so a computation
that was cut short can be repeated.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from lathe.engine.errors import DataError
from lathe.engine.worker.backends.onnx.runtime import Session, runtime

_PAST = re.compile(r"past(?:_key_values)?\.(\d+)\.(key|value)")
_KNOWN = frozenset({"input_ids", "attention_mask", "position_ids", "use_cache_branch"})
_FUSED = frozenset({"GroupQueryAttention", "MultiHeadAttention", "DecoderMaskedMultiHeadAttention", "Attention"})
"""Operators that count keys by themselves, so that padding on the left would be counted too."""
_TYPES: dict[str, Any] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}

Logits = npt.NDArray[np.float32]


class Past:
    """What a few sequences have computed: keys and values by layer, each [rows, heads, width, size], padded left."""

    __slots__ = ("lengths", "values", "width")

    def __init__(self, values: list[Any], lengths: list[int], width: int) -> None:
        self.values = values
        """OrtValues on the model's device."""
        self.lengths = lengths
        """Tokens of each row; the others of `width` are padding in front."""
        self.width = width


class Decoder:
    """A session and the meaning of its tensors."""

    def __init__(self, session: Session) -> None:
        """Recognise the graph.

        Raises:
            DataError: it is no decoder with a past, or wants what we do not have.
        """
        self.session = session
        self._ort = runtime()
        inputs, outputs = session.inputs, session.outputs
        past = {found.groups(): name for name in inputs if (found := _PAST.fullmatch(name))}
        if not past:
            raise DataError(
                f"{session.file.path.name} is a decoder without its past: each token would compute the whole text",
                hint="export it with the task text-generation-with-past", code="E_ONNX",
            )  # fmt: skip
        unknown = sorted(set(inputs) - set(past.values()) - _KNOWN)
        if unknown or "logits" not in outputs:
            missing = f"wants {', '.join(unknown[:4])}" if unknown else "gives no logits"
            raise DataError(f"{session.file.path.name} {missing}, which Lathe does not know", code="E_ONNX")
        keys = sorted(past, key=lambda key: (int(key[0]), key[1]))
        self._past_names = [past[key] for key in keys]
        self._present_names = [_present(key, outputs, session) for key in keys]
        self.layers = len(keys) // 2
        self.merged = "use_cache_branch" in inputs
        first = inputs[self._past_names[0]]
        self._dtype = _TYPES.get(first.type)
        _, heads, _, size = first.shape
        if self._dtype is None or not isinstance(heads, int) or not isinstance(size, int):
            shape = f"{first.type}{first.shape}"
            raise DataError(f"{session.file.path.name} has a past of {shape}, which Lathe cannot make", code="E_ONNX")
        self._empty = (1, heads, 0, size)
        self.pads: bool = (
            {"attention_mask", "position_ids"} <= inputs.keys()
            and not self.merged
            and not _FUSED & session.file.operators.keys()
        )
        """Whether sequences of different length can share a computation."""
        self.token_bytes: int = len(keys) * heads * size * np.dtype(self._dtype).itemsize
        """Of the past, for one token."""
        vocabulary = outputs["logits"].shape[-1]
        self.vocabulary: int = vocabulary if isinstance(vocabulary, int) else 0

    def start(self) -> Past:
        """The past of a sequence that has none."""
        return Past([self.value(np.zeros(self._empty, self._dtype)) for _ in self._past_names], [0], 0)

    def value(self, array: npt.NDArray[Any]) -> Any:
        """An array as the library's value, on the model's device."""
        return self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array), self.session.device, 0)

    def compute(self, past: Past, tokens: Sequence[Sequence[int]], options: Any = None) -> tuple[Past, Any]:
        """Compute the same number of next tokens for every row.

        Args:
            options: RunOptions, whose `terminate` ends the computation from another thread.

        Returns:
            The new past, and the logits as the library's value, [rows, tokens, vocabulary].
        """
        ids = np.asarray(tokens, np.int64)
        count = ids.shape[1]
        native, device = self.session.native, self.session.device
        binding = native.io_binding()
        binding.bind_cpu_input("input_ids", ids)
        inputs = self.session.inputs
        if "attention_mask" in inputs:
            binding.bind_cpu_input("attention_mask", _mask(past, count))
        if "position_ids" in inputs:
            starts = np.asarray(past.lengths, np.int64)[:, None]
            binding.bind_cpu_input("position_ids", starts + np.arange(count, dtype=np.int64))
        if self.merged:
            binding.bind_cpu_input("use_cache_branch", np.asarray([past.width > 0]))
        for name, value in zip(self._past_names, past.values, strict=True):
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits", "cpu")
        for name in self._present_names:
            binding.bind_output(name, device)
        native.run_with_iobinding(binding, options)
        logits, *present = binding.get_outputs()
        return Past(present, [length + count for length in past.lengths], past.width + count), logits

    # -- rows come and go ----------------------------------------------------------------------------------------
    def taken(self, past: Past, row: int) -> Past:
        """One row by itself, without its padding."""
        length = past.lengths[row]
        values = [self.value(value.numpy()[row : row + 1, :, past.width - length :]) for value in past.values]
        return Past(values, [length], length)

    def cut(self, past: Past, length: int) -> Past:
        """The first `length` tokens of a single row."""
        values = [self.value(value.numpy()[:, :, :length]) for value in past.values]
        return Past(values, [length], length)

    def joined(self, parts: Sequence[tuple[Past, int]]) -> Past:
        """Rows of several pasts side by side, padded on the left to the longest."""
        lengths = [past.lengths[row] for past, row in parts]
        width = max(lengths)
        values = []
        for layer in range(len(self._past_names)):
            arrays = [past.values[layer].numpy() for past, _ in parts]
            _, heads, _, size = arrays[0].shape
            whole = np.zeros((len(parts), heads, width, size), self._dtype)
            for place, (array, (past, row)) in enumerate(zip(arrays, parts, strict=True)):
                length = past.lengths[row]
                whole[place, :, width - length :] = array[row, :, past.width - length :]
            values.append(self.value(whole))
        return Past(values, lengths, width)


def _mask(past: Past, count: int) -> npt.NDArray[np.int64]:
    mask = np.ones((len(past.lengths), past.width + count), np.int64)
    for row, length in enumerate(past.lengths):
        mask[row, : past.width - length] = 0
    return mask


def _present(key: tuple[str | Any, ...], outputs: dict[str, Any], session: Session) -> str:
    for name in (f"present.{key[0]}.{key[1]}", f"present_key_values.{key[0]}.{key[1]}"):
        if name in outputs:
            return name
    raise DataError(f"{session.file.path.name} takes a past of layer {key[0]} and gives none back", code="E_ONNX")
