"""The header of a GGUF file against the file's own size: seconds before anything is read, never more than it holds.

The layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Library readers loop over whatever numbers the
header states, which takes minutes for a truncated file and for ever for a hostile one.
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from specalign.errors import UserError

VERSIONS = (2, 3)
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of each value type of a fixed size."""
STRING, ARRAY = 8, 9
MOST_ENTRIES = 1 << 20
"""Metadata fields or tensors, a hundred times what the largest models have."""
MOST_DIMENSIONS = 8


def require_whole_gguf(path: Path) -> None:
    """Raise UserError unless every field and every tensor that the header names lies within the file."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _walk(_Cursor(data))
    except ValueError as error:  # an empty file cannot be mapped
        raise UserError(
            f"cannot convert {path} ({size:,} bytes): it is no whole GGUF file: {error}; copy or download it again"
        ) from None


class _Cursor:
    """Reads numbers and skips bytes; ValueError at the end of the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place, self.size = data, 0, len(data)

    def skip(self, n_bytes: int) -> None:
        if n_bytes > self.size - self.place:
            raise ValueError(f"its header needs {n_bytes:,} bytes at {self.place:,} where the file ends")
        self.place += n_bytes

    def number(self, form: str) -> int:
        before = self.place
        self.skip(struct.calcsize(form))
        return int(struct.unpack_from(form, self.data, before)[0])

    def text(self) -> bytes:
        length = self.number("<Q")
        before = self.place
        self.skip(length)
        return bytes(self.data[before : self.place])


def _walk(cursor: _Cursor) -> None:
    if cursor.data[:4] != b"GGUF":
        raise ValueError("it does not begin with GGUF")
    cursor.skip(4)
    version, n_tensors, n_fields = cursor.number("<I"), cursor.number("<Q"), cursor.number("<Q")
    if version not in VERSIONS:
        raise ValueError(f"its version is {version}, not 2 or 3")
    if max(n_tensors, n_fields) > MOST_ENTRIES:
        raise ValueError(f"it states {n_fields:,} fields and {n_tensors:,} tensors")
    alignment = 32
    for _ in range(n_fields):
        key, kind = cursor.text(), cursor.number("<I")
        before = cursor.place
        _skip_value(cursor, kind)
        if key == b"general.alignment" and kind == 4:
            alignment = int(struct.unpack_from("<I", cursor.data, before)[0])
    tensors = [_tensor(cursor) for _ in range(n_tensors)]
    if alignment < 1:
        raise ValueError("its alignment is 0")
    room = cursor.size - -(-cursor.place // alignment) * alignment
    for name, begin, n_bytes in tensors:
        if begin + n_bytes > room:
            raise ValueError(
                f"tensor {name!r} needs {begin + n_bytes:,} bytes of data, the file has {max(0, room):,}"
            )
    if sum(n_bytes for _, _, n_bytes in tensors) > max(0, room):
        raise ValueError("its tensors share their bytes")


def _skip_value(cursor: _Cursor, kind: int) -> None:
    if kind in SCALARS:
        cursor.skip(SCALARS[kind])
    elif kind == STRING:
        cursor.skip(cursor.number("<Q"))
    elif kind == ARRAY:
        inner, count = cursor.number("<I"), cursor.number("<Q")
        if inner in SCALARS:
            cursor.skip(SCALARS[inner] * count)
        elif inner == STRING:
            for _ in range(count):
                cursor.skip(cursor.number("<Q"))
        else:
            raise ValueError(f"an array of values of type {inner}")
    else:
        raise ValueError(f"a value of type {kind}")


def _tensor(cursor: _Cursor) -> tuple[str, int, int]:
    """(Name, offset, bytes) of the next tensor."""
    name = cursor.text().decode("utf-8", "replace")[:64]
    n_dimensions = cursor.number("<I")
    if n_dimensions > MOST_DIMENSIONS:
        raise ValueError(f"tensor {name!r} has {n_dimensions} dimensions")
    n_elements = math.prod(cursor.number("<Q") for _ in range(n_dimensions))
    kind, offset = cursor.number("<I"), cursor.number("<Q")
    if kind not in set(GGMLQuantizationType):
        raise ValueError(f"tensor {name!r} is of type {kind}")
    block, n_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return name, offset, -(-n_elements // block) * n_bytes
