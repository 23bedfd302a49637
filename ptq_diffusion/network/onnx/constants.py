"""Constants of graphs: one file of numbers that all graphs of a folder share, and integers of 4 bits."""

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, external_data_helper, numpy_helper

LARGE = 1024
"""Bytes from which on a constant is kept in the shared file."""
ALIGNMENT = 64
"""Constants begin at multiples of so many bytes, as kernels like to find them."""
HALVES = {np.dtype(np.int8): TensorProto.INT4, np.dtype(np.uint8): TensorProto.UINT4}
"""The type of 4 bits in place of one of 8."""


class SharedConstants:
    """A file of constants, each of which it holds once.

    Args:
        path: of the file, which is written anew.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._places: dict[str, int] = {}
        path.write_bytes(b"")

    def share(self, tensor: TensorProto) -> TensorProto:
        """The constant itself, or, of a large one, a constant whose numbers are in the file."""
        numbers = tensor.raw_data
        if len(numbers) < LARGE:
            return tensor
        digest = hashlib.sha256(numbers).hexdigest()
        if digest not in self._places:
            self._places[digest] = self._append(numbers)
        shared = TensorProto()
        shared.CopyFrom(tensor)
        external_data_helper.set_external_data(shared, self._path.name, self._places[digest], len(numbers))
        shared.ClearField("raw_data")
        return shared

    def _append(self, numbers: bytes) -> int:
        with self._path.open("ab") as file:
            file.write(bytes(-file.tell() % ALIGNMENT))
            place = file.tell()
            file.write(numbers)
        return place


def constant(name: str, numbers: np.ndarray, bits: int) -> TensorProto:
    """A constant of a graph.

    Args:
        name: in the graph.
        numbers: of the constant; int8 or uint8 where bits are 4.
        bits: 4 packs two integers into a byte, the first in the low half; others are left as they are.
    """
    if bits != 4:
        return numpy_helper.from_array(np.ascontiguousarray(numbers), name)
    codes = np.pad(numbers.reshape(-1), (0, numbers.size % 2)).astype(np.uint8) & 0xF
    packed = codes[::2] | codes[1::2] << 4
    return onnx.helper.make_tensor(name, HALVES[numbers.dtype], numbers.shape, packed.tobytes(), raw=True)
