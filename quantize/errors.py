"""The error tree of the quantize floor.

    QuantizeError
    |- FormatError            bytes on disk are not what their format promises
    |  |- GgufError           code E_GGUF_HEADER | E_GGUF_LIMIT | E_GGUF_METADATA | E_GGUF_TENSOR | E_GGUF_MODEL
    |  |- SafetensorsError    code E_SAFETENSORS_*
    |  '- CheckpointError     a checkpoint folder: config, shards, tokenizer
    |- UnsupportedError       well-formed, but nothing here can do it (unknown architecture, type, pre-tokenizer)
    |- UnsafeError            refused by policy: pickles, remote code, escaping paths
    |- InputMissing           a named input does not exist
    '- OutputError            the output cannot be written (exists, equals the input, no space)

Every message says what went wrong and with which object; `hint` says what to do next.
"""

from __future__ import annotations


class QuantizeError(Exception):
    """Base of everything this floor raises on purpose."""

    code = "E_QUANTIZE"

    def __init__(self, message: str, *, hint: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code


class FormatError(QuantizeError):
    """The bytes break the rules of their format."""

    code = "E_FORMAT"


class GgufError(FormatError):
    """A GGUF file that must not reach native code."""

    code = "E_GGUF_HEADER"


class SafetensorsError(FormatError):
    """A safetensors file whose header or data cannot be trusted."""

    code = "E_SAFETENSORS"


class CheckpointError(FormatError):
    """A checkpoint folder that is incomplete or contradicts itself."""

    code = "E_CHECKPOINT"


class UnsupportedError(QuantizeError):
    """Valid input that nothing here can process."""

    code = "E_UNSUPPORTED"


class UnsafeError(QuantizeError):
    """Input that would need code execution or would escape its folder."""

    code = "E_UNSAFE"


class InputMissing(QuantizeError):
    """A named input is not there."""

    code = "E_INPUT_MISSING"


class OutputError(QuantizeError):
    """The output cannot be written safely."""

    code = "E_OUTPUT"
