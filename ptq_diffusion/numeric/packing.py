"""Dense storage of small unsigned integers: codes of 2 to 8 bits, one after the other in bytes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

PERIOD = 8
"""The number of codes that fill whole bytes: eight codes of n bits fill n bytes, whatever n is."""


def pack(integers: Tensor, bits: int) -> Tensor:
    """Codes as bytes, the first code in the lowest bits: 3 bits take 3 bytes for 8 codes, 6 bits 3 bytes for 4.

    Only the last byte may have bits to spare, and those are 0.

    Args:
        integers: codes 0 to 2^bits - 1 of any integer dtype and shape; they are read in row-major order.
        bits: of one code, 2 to 8.

    Returns:
        uint8, (`packed_size(n, bits)`,) for n codes.

    Raises:
        ValueError: bits out of range, numbers that are no integers, or a code that does not fit.
    """
    _require_bits(bits)
    if integers.dtype.is_floating_point or integers.dtype.is_complex or integers.dtype == torch.bool:
        raise ValueError(f"expected codes of an integer dtype, got {integers.dtype}; round to a grid first")
    codes = integers.reshape(-1).long()
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < 2**bits:
        raise ValueError(
            f"expected codes of {bits} bits, 0 to {2**bits - 1}, got {int(codes.min())} to {int(codes.max())}; "
            "subtract the grid's lowest integer first"
        )
    rows = _rows(codes, PERIOD)
    # A code of 8 bits in the eighth place reaches the sign, which the shift back and the mask below undo.
    words = _joined(rows, bits)
    octets = _parts(words, bits, 8)
    return octets.reshape(-1)[: packed_size(codes.numel(), bits)].to(torch.uint8)


def unpack(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """The codes that `pack` was given, int32, in a tensor of this shape.

    Raises:
        ValueError: bits out of range, or not the bytes of so many codes.
    """
    _require_bits(bits)
    count = math.prod(shape)
    if packed.dtype != torch.uint8 or tuple(packed.shape) != (packed_size(count, bits),):
        raise ValueError(
            f"expected {packed_size(count, bits)} bytes (uint8) for {count} codes of {bits} bits, got "
            f"{tuple(packed.shape)} of {packed.dtype}; give the bits and the shape that were packed"
        )
    words = _joined(_rows(packed.long(), bits), 8)
    codes = _parts(words, PERIOD, bits)
    return codes.reshape(-1)[:count].to(torch.int32).reshape(tuple(shape))


def packed_size(count: int, bits: int) -> int:
    """Bytes that so many codes take: ceil(count bits / 8)."""
    return -(-count * bits // 8)


def _require_bits(bits: int) -> None:
    if not 2 <= bits <= 8:
        raise ValueError(f"expected codes of 2 to 8 bits, got {bits}")


def _rows(values: Tensor, width: int) -> Tensor:
    """The numbers (n,) as (rows, width), zeros at the end."""
    return torch.nn.functional.pad(values, (0, -values.numel() % width)).reshape(-1, width)


def _joined(rows: Tensor, bits: int) -> Tensor:
    """One word of 64 bits, (rows,), of every row of numbers of so many bits."""
    words = torch.zeros_like(rows[:, 0])
    for place in range(rows.shape[1]):
        words |= rows[:, place] << place * bits
    return words


def _parts(words: Tensor, count: int, bits: int) -> Tensor:
    """The first numbers of so many bits in every word, (rows, count)."""
    return torch.stack([(words >> place * bits) & (2**bits - 1) for place in range(count)], dim=1)
