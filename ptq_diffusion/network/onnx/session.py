"""Graphs run by ONNX Runtime."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import ModelProto

from ptq_diffusion.network.backend.onednn import cuts_off_sums

IN_FLOAT = "session.disable_quant_qdq", "1"
"""The option by which integers are multiplied as floats, as exactly, where sums of products of 8 bits are cut off."""
QUIET = 3
"""The level of messages that are errors."""


def session(model: ModelProto | Path) -> onnxruntime.InferenceSession:
    """A session of one thread on the CPU.

    Raises:
        ValueError: ONNX Runtime cannot run the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = QUIET
    if cuts_off_sums():
        options.add_session_config_entry(*IN_FLOAT)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    # ONNX Runtime has an error of its own for every kind of fault.
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise ValueError(
            f"expected a network whose graph ONNX Runtime can run, got an error ({text}); draw its images with "
            "goal=samples_corrected"
        ) from error


def run_model(model: ModelProto | Path, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs of a model."""
    return session(model).run(None, dict(inputs))
