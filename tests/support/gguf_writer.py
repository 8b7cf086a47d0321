"""GGUF files written field by field, so that each field can be wrong: the source of malformed files in tests.

`Raw` is a file before it is packed; `tiny_model` is a valid one that llama.cpp loads; `MALFORMED` names what can be
wrong with it and the code of the error that must follow.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lathe.quantize.gguf.types import ValueType
from lathe.quantize.gguf.values import GgufArray, GgufHeader

_PACK = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}


def packed(kind: ValueType, value: object) -> bytes:
    """Pack one value without its type."""
    if kind is ValueType.STRING:
        data = value if isinstance(value, bytes) else str(value).encode()
        return struct.pack("<Q", len(data)) + data
    return struct.pack("<" + _PACK[kind], value)


def scalar(kind: ValueType, value: object) -> bytes:
    """Pack one value behind its type."""
    return struct.pack("<I", kind) + packed(kind, value)


def u32(value: int) -> bytes:
    return scalar(ValueType.UINT32, value)


def f32(value: float) -> bytes:
    return scalar(ValueType.FLOAT32, value)


def text(value: str | bytes) -> bytes:
    return scalar(ValueType.STRING, value)


def array(kind: ValueType | int, values: Iterable[object], count: int | None = None) -> bytes:
    """Pack an array; `count` lies about its length."""
    items = [packed(ValueType(kind), value) for value in values]
    return struct.pack("<IIQ", ValueType.ARRAY, kind, len(items) if count is None else count) + b"".join(items)


@dataclass
class RawTensor:
    """A row of the tensor table and the bytes that it stands for."""

    name: bytes
    shape: tuple[int, ...]
    type: int = 0
    data: bytes = b""
    offset: int | None = None
    dimensions: int | None = None

    def packed(self, offset: int) -> bytes:
        count = len(self.shape) if self.dimensions is None else self.dimensions
        row = struct.pack("<Q", len(self.name)) + self.name
        row += struct.pack(f"<I{len(self.shape)}Q", count, *self.shape)
        return row + struct.pack("<IQ", self.type, offset if self.offset is None else self.offset)


@dataclass
class Raw:
    """A GGUF file before it is packed; counts may be made to lie."""

    keys: list[tuple[bytes, bytes]] = field(default_factory=list)
    tensors: list[RawTensor] = field(default_factory=list)
    magic: bytes = b"GGUF"
    version: int = 3
    key_count: int | None = None
    tensor_count: int | None = None
    alignment: int = 32

    def put(self, key: str, value: bytes) -> Raw:
        """Set or replace a key."""
        name = key.encode()
        for index, (present, _) in enumerate(self.keys):
            if present == name:
                self.keys[index] = (name, value)
                return self
        self.keys.append((name, value))
        return self

    def drop(self, key: str) -> Raw:
        self.keys = [(name, value) for name, value in self.keys if name != key.encode()]
        return self

    def header(self) -> bytes:
        """Pack everything before the padding of the data section."""
        tensor_count = len(self.tensors) if self.tensor_count is None else self.tensor_count
        key_count = len(self.keys) if self.key_count is None else self.key_count
        out = self.magic + struct.pack("<IQQ", self.version, tensor_count, key_count)
        for name, value in self.keys:
            out += struct.pack("<Q", len(name)) + name + value
        offset = 0
        for tensor in self.tensors:
            out += tensor.packed(offset)
            offset += _padded(len(tensor.data), self.alignment)
        return out

    def build(self) -> bytes:
        """Pack the whole file."""
        out = self.header()
        if self.tensors:
            out = out.ljust(_padded(len(out), self.alignment), b"\0")
        for tensor in self.tensors:
            out += tensor.data.ljust(_padded(len(tensor.data), self.alignment), b"\0")
        return out


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def raw_of(header: GgufHeader) -> Raw:
    """Make a header that was read writable again, without tensor data; the same bytes mean that nothing was lost."""
    raw = Raw(version=header.version, alignment=header.alignment)
    for key, kind in header.value_types.items():
        value = header.metadata[key]
        if isinstance(value, GgufArray):
            items = value.numpy() if value.items is not ValueType.STRING else [x for b in value.batches() for x in b]
            raw.put(key, array(value.items, items))
        else:
            raw.put(key, scalar(kind, value))
    raw.tensors = [
        RawTensor(tensor.name.encode(), tensor.shape, tensor.type.id, offset=tensor.offset) for tensor in header.tensors
    ]
    return raw


EMBEDDING, HEADS, FEED_FORWARD = 32, 2, 64


def vocabulary_keys(raw: Raw, words: int = 4) -> int:
    """Add a SentencePiece-like vocabulary with byte tokens; returns its size."""
    tokens = [b"<unk>", b"<s>", b"</s>", *(b"<0x%02X>" % byte for byte in range(256))]
    tokens += [b"\xe2\x96\x81word%d" % index for index in range(words)]
    types = [2, 3, 3, *[6] * 256, *[1] * words]
    raw.put("tokenizer.ggml.model", text("llama"))
    raw.put("tokenizer.ggml.pre", text("default"))
    raw.put("tokenizer.ggml.tokens", array(ValueType.STRING, tokens))
    raw.put("tokenizer.ggml.scores", array(ValueType.FLOAT32, [0.0] * len(tokens)))
    raw.put("tokenizer.ggml.token_type", array(ValueType.INT32, types))
    raw.put("tokenizer.ggml.bos_token_id", u32(1))
    raw.put("tokenizer.ggml.eos_token_id", u32(2))
    return len(tokens)


def float_tensor(name: str, *shape: int) -> RawTensor:
    """Make a float32 tensor of small numbers; the shape starts with the row length."""
    count = math.prod(shape)
    return RawTensor(
        name.encode(), shape, data=struct.pack(f"<{count}f", *(((i * 37) % 64 - 32) / 512 for i in range(count)))
    )


def tiny_model(architecture: str = "llama") -> Raw:
    """A valid llama of one layer, 32 wide, that llama.cpp loads and runs."""
    raw = Raw()
    raw.put("general.architecture", text(architecture))
    raw.put("general.type", text("model"))
    raw.put("general.name", text("tiny"))
    raw.put("general.file_type", u32(0))
    for name, value in {
        "block_count": 1,
        "context_length": 64,
        "embedding_length": EMBEDDING,
        "feed_forward_length": FEED_FORWARD,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS,
        "rope.dimension_count": EMBEDDING // HEADS,
    }.items():
        raw.put(f"{architecture}.{name}", u32(value))
    raw.put(f"{architecture}.attention.layer_norm_rms_epsilon", f32(1e-5))
    raw.put(f"{architecture}.rope.freq_base", f32(10000.0))
    tokens = vocabulary_keys(raw)
    raw.put("tokenizer.chat_template", text("{% for m in messages %}{{ m.content }}{% endfor %}"))
    raw.tensors = [
        float_tensor("token_embd.weight", EMBEDDING, tokens),
        float_tensor("output_norm.weight", EMBEDDING),
        float_tensor("blk.0.attn_norm.weight", EMBEDDING),
        *(float_tensor(f"blk.0.attn_{part}.weight", EMBEDDING, EMBEDDING) for part in ("q", "k", "v", "output")),
        float_tensor("blk.0.ffn_norm.weight", EMBEDDING),
        float_tensor("blk.0.ffn_gate.weight", EMBEDDING, FEED_FORWARD),
        float_tensor("blk.0.ffn_up.weight", EMBEDDING, FEED_FORWARD),
        float_tensor("blk.0.ffn_down.weight", FEED_FORWARD, EMBEDDING),
    ]
    return raw


def tiny_adapter() -> Raw:
    """A valid LoRA adapter for `tiny_model`."""
    raw = Raw()
    raw.put("general.architecture", text("llama")).put("general.type", text("adapter"))
    raw.put("adapter.type", text("lora")).put("adapter.lora.alpha", f32(8.0))
    raw.tensors = [
        float_tensor("blk.0.attn_q.weight.lora_a", EMBEDDING, 4),
        float_tensor("blk.0.attn_q.weight.lora_b", 4, EMBEDDING),
    ]
    return raw


def tiny_imatrix() -> Raw:
    """A valid importance matrix for `tiny_model`."""
    raw = Raw()
    raw.put("general.type", text("imatrix"))
    raw.put("imatrix.datasets", array(ValueType.STRING, ["text"]))
    raw.put("imatrix.chunk_count", u32(1)).put("imatrix.chunk_size", u32(512))
    raw.tensors = [
        float_tensor("blk.0.attn_q.weight.in_sum2", EMBEDDING, 1),
        float_tensor("blk.0.attn_q.weight.counts", 1, 1),
    ]
    return raw


def tiny_shards(folder: Path, count: int = 3) -> list[Path]:
    """Write `tiny_model` split over `count` files; the first has only the metadata."""
    model = tiny_model()
    tensors, paths = model.tensors, []
    per_file = -(-len(tensors) // (count - 1))
    for index in range(count):
        raw = Raw(keys=list(model.keys)) if index == 0 else Raw()
        raw.put("split.no", scalar(ValueType.UINT16, index))
        raw.put("split.count", scalar(ValueType.UINT16, count))
        raw.put("split.tensors.count", scalar(ValueType.INT32, len(tensors)))
        raw.tensors = [] if index == 0 else tensors[(index - 1) * per_file : index * per_file]
        paths.append(folder / f"tiny-{index + 1:05d}-of-{count:05d}.gguf")
        paths[-1].write_bytes(raw.build())
    return paths


Change = Callable[[Raw], "Raw | bytes"]

MALFORMED: dict[str, tuple[str, Callable[[], bytes]]] = {}
"""Name -> (code of the error, maker of the file)."""


def _kind(code: str, name: str, change: Change, base: Callable[[], Raw] = tiny_model) -> None:
    def make() -> bytes:
        result = change(base())
        return result if isinstance(result, bytes) else result.build()

    assert name not in MALFORMED
    MALFORMED[name] = (f"E_GGUF_{code}", make)


def _put(key: str, value: bytes) -> Change:
    return lambda raw: raw.put(key, value)


def _tensor(**changes: object) -> Change:
    """Change the last tensor, whose position disturbs no other."""

    def change(raw: Raw) -> Raw:
        for name, value in changes.items():
            setattr(raw.tensors[-1], name, value)
        return raw

    return change


def _set(**changes: object) -> Change:
    def change(raw: Raw) -> Raw:
        for name, value in changes.items():
            setattr(raw, name, value)
        return raw

    return change


def _extra_key(name: bytes, value: bytes = u32(0)) -> Change:
    def change(raw: Raw) -> Raw:
        raw.keys.append((name, value))
        return raw

    return change


def _cut(size: int) -> Change:
    return lambda raw: raw.build()[:size]


def _string_of(length: int, data: bytes = b"") -> bytes:
    return struct.pack("<IQ", ValueType.STRING, length) + data


def _nested(depth: int) -> bytes:
    return struct.pack("<I", ValueType.ARRAY) + struct.pack("<IQ", ValueType.ARRAY, 1) * depth


def _tokens(values: Iterable[bytes], count: int | None = None) -> Change:
    return _put("tokenizer.ggml.tokens", array(ValueType.STRING, values, count))


# F01: the first bytes
_kind("HEADER", "empty", lambda raw: b"")
_kind("HEADER", "three bytes", _cut(3))
_kind("HEADER", "magic only", _cut(4))
_kind("HEADER", "cut in the preamble", _cut(23))
_kind("HEADER", "bad magic", _set(magic=b"GGUG"))
_kind("HEADER", "legacy magic", _set(magic=b"tjgg"))
_kind("HEADER", "swapped magic", _set(magic=b"FUGG"))
for _version in (0, 1, 4, 99, 0xFFFFFFFF):
    _kind("HEADER", f"version {_version}", _set(version=_version))
_kind("HEADER", "big endian", _set(version=0x03000000))
_kind("HEADER", "noise", lambda raw: bytes(range(200, 256)) * 4)

# F02: counts
for _field in ("key_count", "tensor_count"):
    for _count in (2**64 - 1, 2**63, 2_000_000_000):
        _kind("LIMIT", f"{_field} {_count}", _set(**{_field: _count}))
_kind("LIMIT", "key_count just over", _set(key_count=4097))
_kind("LIMIT", "tensor_count just over", _set(tensor_count=65_537))
_kind("HEADER", "tensor_count beyond the file", _set(tensor_count=65_536))
_kind("HEADER", "key_count beyond the file", lambda raw: Raw(key_count=4096).build())
_kind("HEADER", "tensor_count one less", lambda raw: _set(tensor_count=12)(raw).header())  # type: ignore[union-attr]

# F03: keys
_kind("METADATA", "key of 2^64-1 bytes", lambda raw: Raw(key_count=1).build() + b"\xff" * 64)
_kind("METADATA", "empty key", _extra_key(b""))
_kind("METADATA", "key of 257 bytes", _extra_key(b"k" * 257))
_kind("METADATA", "key of 1 MiB", _extra_key(b"k" * (1 << 20)))
_kind("METADATA", "duplicate key", _extra_key(b"llama.block_count", u32(1)))
_kind("METADATA", "key not UTF-8", _extra_key(b"k\xff"))
_kind("METADATA", "key with NUL", _extra_key(b"general.name\0x"))
_kind("METADATA", "key with escape", _extra_key(b"k\x1b]0;title\x07"))

# F04: values
for _number in (13, 250, 0xFFFFFFFF):
    _kind("METADATA", f"value type {_number}", _put("x", struct.pack("<II", _number, 0)))
    _kind("METADATA", f"item type {_number}", _put("x", struct.pack("<IIQ", ValueType.ARRAY, _number, 0)))
_kind("LIMIT", "string of 2^63 bytes", _put("x", _string_of(2**63)))
_kind("LIMIT", "string over 1 MiB", _put("x", text(b"s" * ((1 << 20) + 1))))
_kind("HEADER", "string past the end", _put("x", _string_of(1 << 20)))
_kind("LIMIT", "template over 256 KiB", _put("tokenizer.chat_template", text(b"t" * ((256 << 10) + 1))))
_kind("LIMIT", "named template over 256 KiB", _put("tokenizer.chat_template.tool", text(b"t" * ((256 << 10) + 1))))
_kind("METADATA", "string not UTF-8", _put("general.name", text(b"\xc3\x28")))
_kind("METADATA", "bool of 7", _put("x", struct.pack("<IB", ValueType.BOOL, 7)))
for _count in (2**64 - 1, 2**62, 2_000_000_000, 2_000_001):
    _kind("LIMIT", f"array of {_count} bytes", _put("x", array(ValueType.UINT8, [], _count)))
    _kind("LIMIT", f"array of {_count} strings", _put("x", array(ValueType.STRING, [], _count)))
_kind("HEADER", "array past the end", _put("x", array(ValueType.FLOAT64, [], 1_999_999)))
_kind("HEADER", "strings past the end", _put("x", array(ValueType.STRING, [], 1_999_999)))
_kind("LIMIT", "item of 2^63 bytes", lambda raw: _put("x", array(8, [], 1) + b"\xff" * 8)(raw))
_kind("LIMIT", "item over 1 MiB", _put("x", array(ValueType.STRING, [b"s" * ((1 << 20) + 1)])))
_kind("METADATA", "array of arrays", _put("x", _nested(2)))
_kind("METADATA", "arrays 20,000 deep", _put("x", _nested(20_000)))
_kind("LIMIT", "17 MiB of strings", lambda raw: _many_strings(raw))

# F05: alignment
for _value in (0, 1, 13, 16, 48, 1 << 17, 1 << 31):
    _kind("METADATA", f"alignment {_value}", _put("general.alignment", u32(_value)))
_kind("METADATA", "alignment as uint64", _put("general.alignment", scalar(ValueType.UINT64, 32)))
_kind("METADATA", "alignment as text", _put("general.alignment", text("32")))

# F06: shapes
for _count in (5, 1_000_000, 2**32 - 1):
    _kind("TENSOR", f"{_count} dimensions", _tensor(dimensions=_count))
for _shape in ((0, 4), (4, 0), (2**63, 1), (2**64 - 1,), (2**32, 2**32), (2**32, 2**32, 2**31, 16), (2**62, 2)):
    _kind("TENSOR", f"shape {_shape}", _tensor(shape=_shape))
for _type, _row in ((2, 33), (8, 31), (12, 32), (39, 48), (41, 64)):
    _kind("TENSOR", f"rows of {_row} for type {_type}", _tensor(shape=(_row, 2), type=_type))
_kind("TENSOR", "tensor larger than the file", _tensor(shape=(1 << 30, 1 << 10)))

# F07: the tensor table
for _offset in (1 << 40, 2**64 - 32, 2**63):
    _kind("TENSOR", f"offset {_offset}", _tensor(offset=_offset))
_kind("TENSOR", "offset not aligned", _tensor(offset=33))
_kind("TENSOR", "overlap", _tensor(offset=0))
_kind("TENSOR", "hole", lambda raw: _hole(raw))
_kind("TENSOR", "duplicate tensor", _tensor(name=b"output_norm.weight"))
for _type in (4, 9, 15, 31, 36, 43, 250, 2**32 - 1):
    _kind("TENSOR", f"type {_type}", _tensor(type=_type))
for _name, _title in ((b"", "no name"), (b"n" * 64, "name of 64 bytes"), (b"n" * (1 << 20), "name of 1 MiB")):
    _kind("TENSOR", _title, _tensor(name=_name))
_kind("TENSOR", "name with NUL", _tensor(name=b"blk.0\0"))
_kind("TENSOR", "name not UTF-8", _tensor(name=b"blk.\xff"))
_kind("TENSOR", "data cut short", lambda raw: raw.build()[:-64])
_kind("TENSOR", "no data at all", lambda raw: raw.header())

# F08: hyper-parameters
for _name, _value in (
    ("block_count", 0), ("block_count", 513), ("block_count", 2**32 - 1), ("context_length", 0),
    ("context_length", 2**31), ("embedding_length", 0), ("embedding_length", 2**31), ("attention.head_count", 2**31),
    ("attention.head_count_kv", 3), ("attention.key_length", 0), ("attention.value_length", 2**32 - 1),
    ("feed_forward_length", 2**31), ("rope.dimension_count", 2**31), ("expert_count", 1025), ("expert_count", 8),
    ("expert_used_count", 1), ("expert_group_count", 4), ("nextn_predict_layers", 2), ("pooling_type", 99),
    ("vocab_size", 0), ("vocab_size", 2**31),
):  # fmt: skip
    _kind("MODEL", f"{_name} {_value}", _put(f"llama.{_name}", u32(_value)))
for _name, _number_ in (
    ("attention.layer_norm_rms_epsilon", math.nan), ("attention.layer_norm_rms_epsilon", -1.0),
    ("attention.layer_norm_rms_epsilon", math.inf), ("rope.freq_base", 0.0), ("rope.freq_base", math.inf),
    ("rope.scaling.factor", math.nan), ("logit_scale", -math.inf),
):  # fmt: skip
    _kind("MODEL", f"{_name} {_number_}", _put(f"llama.{_name}", f32(_number_)))
for _name in ("block_count", "context_length", "embedding_length"):
    _kind("MODEL", f"{_name} missing", lambda raw, name=_name: raw.drop(f"llama.{name}"))  # type: ignore[misc]
    _kind("METADATA", f"{_name} as uint64", _put(f"llama.{_name}", scalar(ValueType.UINT64, 1)))
    _kind("METADATA", f"{_name} as text", _put(f"llama.{_name}", text("1")))
_kind("METADATA", "context_length as array", _put("llama.context_length", array(ValueType.UINT32, [1])))
_kind("METADATA", "heads as floats", _put("llama.attention.head_count", array(ValueType.FLOAT32, [2.0])))
_kind("MODEL", "heads for two layers", _put("llama.attention.head_count", array(ValueType.UINT32, [2, 2])))
_kind("MODEL", "heads per layer 2^31", _put("llama.attention.head_count", array(ValueType.UINT32, [2**31])))
_kind("METADATA", "epsilon as double", _put("llama.attention.layer_norm_rms_epsilon", scalar(ValueType.FLOAT64, 1e-5)))
_kind("MODEL", "no architecture", lambda raw: raw.drop("general.architecture"))
_kind("MODEL", "empty architecture", _put("general.architecture", text("")))
_kind("METADATA", "architecture a number", _put("general.architecture", u32(1)))
_kind("METADATA", "name a number", _put("general.name", u32(1)))
_kind("METADATA", "file type as text", _put("general.file_type", text("Q4_0")))
_kind("MODEL", "rope scaling unknown", _put("llama.rope.scaling.type", text("bogus")))
_kind("METADATA", "rope scaling a number", _put("llama.rope.scaling.type", u32(0)))
_kind("METADATA", "split.no as uint32", _put("split.no", u32(0)))
_kind("METADATA", "split.count as text", _put("split.count", text("3")))

# F10: vocabulary
_kind("MODEL", "no tokens", _tokens([]))
_kind("LIMIT", "10 M tokens", _tokens([], 10_000_000))
_kind("LIMIT", "token of 4097 bytes", _tokens([b"t" * 4097]))
_kind("LIMIT", "token of 1 MB", _tokens([b"a", b"t" * 1_000_000]))
_kind("MODEL", "duplicate tokens", _tokens([b"a", b"b", b"a"]))
_kind("MODEL", "equal up to NUL", _tokens([b"a", b"b", b"a\0c"]))
_kind("MODEL", "an empty token's stand-in", _tokens([b"a", b"", b"[EMPTY_1]"]))
_kind("MODEL", "fewer tokens than rows", lambda raw: _two_tokens(raw))
_kind("METADATA", "tokens are numbers", _put("tokenizer.ggml.tokens", array(ValueType.UINT32, [1, 2])))
_kind("METADATA", "tokens are text", _put("tokenizer.ggml.tokens", text("abc")))
_kind("METADATA", "merges are numbers", _put("tokenizer.ggml.merges", array(ValueType.INT32, [1])))
_kind("MODEL", "one score", _put("tokenizer.ggml.scores", array(ValueType.FLOAT32, [0.0])))
_kind("MODEL", "a NaN score", _put("tokenizer.ggml.scores", array(ValueType.FLOAT32, [0.0] * 262 + [math.nan])))
_kind("METADATA", "scores as doubles", _put("tokenizer.ggml.scores", array(ValueType.FLOAT64, [0.0] * 263)))
_kind("MODEL", "one token type", _put("tokenizer.ggml.token_type", array(ValueType.INT32, [1])))
_kind("MODEL", "token type 99", _put("tokenizer.ggml.token_type", array(ValueType.INT32, [99] * 263)))
_kind("MODEL", "bytes in WordPiece", _put("tokenizer.ggml.model", text("bert")))
_kind("MODEL", "token type -1", _put("tokenizer.ggml.token_type", array(ValueType.INT32, [-1] * 263)))
_kind("METADATA", "token types as int64", _put("tokenizer.ggml.token_type", array(ValueType.INT64, [1] * 263)))
_kind("METADATA", "bos as text", _put("tokenizer.ggml.bos_token_id", text("<s>")))
_kind("METADATA", "add_bos as number", _put("tokenizer.ggml.add_bos_token", u32(1)))
_kind("MODEL", "adds a separator it has not", _put("tokenizer.ggml.add_sep_token", scalar(ValueType.BOOL, True)))
_kind("MODEL", "character map of 2 bytes", _put("tokenizer.ggml.precompiled_charsmap", array(ValueType.UINT8, [0, 0])))
_kind("MODEL", "character map too large", _put("tokenizer.ggml.precompiled_charsmap", array(0, [255] * 3 + [0] * 9)))
_kind("METADATA", "model a number", _put("tokenizer.ggml.model", u32(1)))
_kind("METADATA", "template an array", _put("tokenizer.chat_template", array(ValueType.STRING, ["x"])))

# Adapters and importance matrices
_kind("METADATA", "adapter without a type", lambda raw: raw.drop("adapter.type"), tiny_adapter)
_kind("METADATA", "alpha as uint32", _put("adapter.lora.alpha", u32(8)), tiny_adapter)
_kind("MODEL", "alpha NaN", _put("adapter.lora.alpha", f32(math.nan)), tiny_adapter)
_kind("TENSOR", "half of a pair", lambda raw: _set(tensors=raw.tensors[:1])(raw), tiny_adapter)
_kind("TENSOR", "ranks that differ", _tensor(shape=(8, EMBEDDING // 2)), tiny_adapter)
_kind("TENSOR", "sums without counts", lambda raw: _set(tensors=raw.tensors[:1])(raw), tiny_imatrix)
_kind("TENSOR", "counts as int32", _tensor(type=26), tiny_imatrix)
_kind("TENSOR", "weights in an imatrix", _tensor(name=b"blk.0.attn_q.weight"), tiny_imatrix)


def _many_strings(raw: Raw) -> Raw:
    for index in range(17):
        raw.put(f"x.{index}", text(b"s" * (1 << 20)))
    return raw


def _two_tokens(raw: Raw) -> Raw:
    raw.drop("tokenizer.ggml.scores").drop("tokenizer.ggml.token_type")
    return raw.put("tokenizer.ggml.tokens", array(ValueType.STRING, [b"a", b"b"]))


def _hole(raw: Raw) -> Raw:
    raw.tensors[-1].offset = sum(len(tensor.data) for tensor in raw.tensors[:-1]) + 32
    raw.tensors[-1].data += bytes(32)
    return raw
