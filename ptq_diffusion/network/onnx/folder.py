"""A folder of graphs: what it says of itself, and its outputs by ONNX Runtime."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from ptq_diffusion.model import Condition
from ptq_diffusion.network.onnx.session import session
from ptq_diffusion.network.onnx.tracing import STATE, TIME
from ptq_diffusion.sampler import Step

DESCRIPTION = "onnx.json"
"""The file that says which graph every step takes."""
FORMAT = 2
"""The version of the description."""


class GraphFolder:
    """m~ of the rows of a batch by the graphs of a folder, which guidance is not in.

    Rows of guided steps are asked about together, those of the null condition first, as differences between the two may
    be quantized.

    Args:
        folder: that the stage `onnx` wrote.

    Raises:
        FileNotFoundError: the folder has no description.
        ValueError: it is of another version.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / DESCRIPTION
        if not path.is_file():
            raise FileNotFoundError(f"expected {DESCRIPTION} in {folder}; write graphs with goal=onnx")
        self.folder, self.description = folder, json.loads(path.read_text())
        if (version := self.description.get("format")) != FORMAT:
            raise ValueError(f"expected graphs in format {FORMAT} in {folder}, got {version!r}; write them again")
        self._session = cache(self._started)

    def _started(self, name: str) -> onnxruntime.InferenceSession:
        return session(self.folder / name)

    def predict(self, x_t: Tensor, step: Step, condition: Condition | None = None) -> Tensor:
        """m~, (B, C, H, W), of states (B, C, H, W) and their condition."""
        tensors: dict[str, Any] = {STATE: x_t.numpy(), TIME: np.asarray(step.t, np.float32)}
        tensors |= {name: tensor.numpy() for name, tensor in (condition.tensors() if condition else {}).items()}
        graph = self._session(self.description["files"][step.i])
        (output,) = graph.run(None, {value.name: tensors[value.name] for value in graph.get_inputs()})
        return torch.from_numpy(output)
