"""The safetensors format (https://github.com/huggingface/safetensors): tensors, in a file that can hold nothing else.

    8 bytes     n, the length of the header, little-endian
    n bytes     the header, JSON: {"wpe.weight": {"dtype": "F32", "shape": [4, 2], "data_offsets": [0, 32]}, …}
    the rest    the numbers, one tensor after another, without a gap

A file that breaks one of these rules is refused, with a sentence that says where.
"""

import json
import math
import reprlib
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.files import replacing

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
LONGEST_HEADER = 100_000_000  # bytes, as in the reference implementation


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a file by name, on the CPU. Raises ValueError for a malformed file: its name and what is wrong."""
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise ValueError(f"{path} is a Git LFS pointer, not the weights: fetch them with git lfs pull")
        n = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= n <= min(size - 8, LONGEST_HEADER):
            raise ValueError(f"{path} is not a safetensors file: {size:,} bytes with a header of {n:,}")
        entries = _header(path, file.read(n))
    data = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)[8 + n :]  # mapped, not yet read
    tensors, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: _offsets(path, *item)):
        dtype, shape, (begin, after) = _checked(path, name, entry)
        if begin != end:
            raise ValueError(f"{path}: {_shown(name)} begins at byte {begin:,} of the data, where {end:,} is expected")
        if after > len(data):
            what = f"{_shown(name)} ends at byte {after:,} of the data, which has {len(data):,}"
            raise ValueError(f"{path} is cut off: {what}")
        try:
            tensors[name] = data[begin:after].clone().view(dtype).view(shape)
        except RuntimeError:  # as in (0, 2^62, 2^62)
            raise ValueError(f"{path}: {_shown(name)} has the shape {shape}, which no tensor can have") from None
        end = after
    if end != len(data):
        raise ValueError(f"{path} has {len(data) - end:,} bytes after its last tensor")
    return tensors


def _header(path: str | Path, text: bytes) -> dict[str, Any]:
    def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name comes twice")
        return dict(pairs)

    try:
        header = json.loads(text.decode(), object_pairs_hook=without_duplicates)
        header.pop("__metadata__", None)
        return header
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is not a safetensors file: its header cannot be read ({error})") from None


def _offsets(path: str | Path, name: str, entry: Any) -> list[int]:
    offsets: Any = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not (_whole_numbers(offsets) and len(offsets) == 2):
        found = reprlib.repr(offsets)
        raise ValueError(f"{path}: {_shown(name)} has the data_offsets {found}, expected two whole numbers")
    return offsets


def _checked(path: str | Path, name: str, entry: dict[str, Any]) -> tuple[torch.dtype, list[int], list[int]]:
    dtype, offsets = entry.get("dtype"), _offsets(path, name, entry)
    shape: Any = entry.get("shape")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"{path}: {_shown(name)} has the dtype {reprlib.repr(dtype)}; known are {', '.join(DTYPES)}")
    if not _whole_numbers(shape):
        raise ValueError(
            f"{path}: {_shown(name)} has the shape {reprlib.repr(shape)}, expected a list of whole numbers"
        )
    expected, found = math.prod(shape) * DTYPES[dtype].itemsize, offsets[1] - offsets[0]
    if expected != found:
        takes = f"{dtype} of shape {shape} takes {expected:,}"
        raise ValueError(f"{path}: {_shown(name)} has {found:,} bytes, where {takes}")
    return DTYPES[dtype], shape, offsets


def _whole_numbers(value: Any) -> bool:
    """Eight at most, as no weight has more dimensions, each below 2^63."""
    return isinstance(value, list) and len(value) <= 8 and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _shown(name: str) -> str:
    """Fit for a sentence."""
    return name[:200] if name.isprintable() else ascii(name[:200])


def write_safetensors(path: str | Path, tensors: dict[str, Tensor]) -> int:
    """Writes the tensors, replacing the file whole, and returns its size in bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers asks for it
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.itemsize
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the numbers are aligned
    with replacing(Path(path)) as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return Path(path).stat().st_size
