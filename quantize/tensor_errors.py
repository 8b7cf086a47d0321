"""What quantization did to each tensor: errors of its weights, from a sample of rows of both files.

Pure. Invariant: the sample is the same rows every time, so the reports of two files can be compared; what cannot be
restored to numbers has no figures instead of zeros.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt
from lathe.quantize.gguf.values import GgufHeader, GgufTensor
from lathe.quantize.types import tensor_type

Floats = npt.NDArray[np.float32]

_SAMPLED_ROWS = 256


class TensorError(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of the new file beside the one it was made from."""

    name: str
    kind: str
    relative: float | None = None
    """Root mean square of the weights' errors, over that of the weights; None where they cannot be restored here."""
    maximum: float | None = None
    """Largest error, over the root mean square of the weights."""
    weighted: float | None = None
    """`relative` with every channel weighed by its importance; None without an importance matrix."""


def tensor_errors(
    source: Sequence[GgufHeader],
    made: Sequence[GgufHeader],
    origins: Mapping[str, str],
    importances: Mapping[str, Floats] | None = None,
) -> Iterator[TensorError]:
    """Yield the error of every tensor whose type changed, in the order of the new file.

    Args:
        source: headers of the file that was quantized, all shards.
        made: headers of the result, all shards.
        origins: name in the result -> name in the source.
        importances: one value per channel and matrix, as `Imatrix.importances` has them.
    """
    originals = dict(_tensors(source))
    for name, (header, tensor) in _tensors(made):
        origin = originals.get(origins.get(name, name))
        if origin is None or origin[1].type.name == tensor.type.name:
            continue
        yield _error(name, origin, (header, tensor), (importances or {}).get(origin[1].name))


def _tensors(headers: Iterable[GgufHeader]) -> Iterator[tuple[str, tuple[GgufHeader, GgufTensor]]]:
    for header in headers:
        for tensor in header.tensors:
            yield tensor.name, (header, tensor)


def _error(
    name: str, origin: tuple[GgufHeader, GgufTensor], made: tuple[GgufHeader, GgufTensor], importances: Floats | None
) -> TensorError:
    before, after = _sample(*origin), _sample(*made)
    kind = made[1].type.name
    if before is None or after is None:
        return TensorError(name=name, kind=kind)
    difference = np.square(before - after, dtype=np.float64)
    power = np.square(before, dtype=np.float64)
    scale = math.sqrt(power.mean())
    if scale == 0:
        return TensorError(name=name, kind=kind, relative=0.0, maximum=0.0)
    weighted = None
    if importances is not None:
        channels = importances[: before.shape[1]].astype(np.float64)
        total = float((power * channels).sum())
        weighted = math.sqrt(float((difference * channels).sum()) / total) if total > 0 else None
    return TensorError(
        name=name,
        kind=kind,
        relative=math.sqrt(difference.mean()) / scale,
        maximum=math.sqrt(difference.max()) / scale,
        weighted=weighted,
    )


def _sample(header: GgufHeader, tensor: GgufTensor) -> Floats | None:
    """Rows at equal distances, as numbers; None where gguf cannot restore the type."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    row, count = tensor.shape[0], math.prod(tensor.shape[1:])
    size = tensor_type(tensor.type.name).size((row,))
    chosen = range(0, count, max(1, count // _SAMPLED_ROWS))
    position = header.position(tensor)
    packed = np.stack([np.fromfile(header.path, np.uint8, size, offset=position + size * at) for at in chosen])
    try:
        restored: Floats = dequantize(packed, GGMLQuantizationType[tensor.type.name])
    except (KeyError, NotImplementedError):
        return None
    return restored.reshape(len(chosen), row).astype(np.float32, copy=False)
