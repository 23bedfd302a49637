"""Samples with the graphs of goal=onnx: python sample_onnx.py FOLDER IMAGES SEED STATES.npy [CONDITION.npz]."""

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnxruntime


def sample(folder: Path, draw: Callable[[], np.ndarray], condition: Mapping[str, np.ndarray]) -> np.ndarray:
    """x_0 of a batch: images in [-1, 1], or latents; `draw` gives standard normal noise, (B, C, H, W) float32."""
    about = json.loads((folder / "onnx.json").read_text())
    table, sessions, past = about["table"], {}, []
    x = table["init_scale"] * draw()
    by_step = table["steps"], about["sigma"], about["files"], about["guided"]
    for step, sigma, name, guided in zip(*by_step, strict=True):
        sessions = sessions if name in sessions else {name: onnxruntime.InferenceSession(folder / name)}
        told = {"x": x, "t": np.array(step["t"], np.float32), **condition}
        told = with_null(folder, told) if guided else told
        read = [value.name for value in sessions[name].get_inputs()]
        (m,) = sessions[name].run(["m"], {value: told[value] for value in read})
        if guided:
            m_null, m = np.split(m, 2)
            m = m_null + about["guidance"]["scale"] * (m - m_null)
        x_0 = step["p_x"] * x + step["p_m"] * m
        x_0 = x_0 if step["clip"] is None else x_0.clip(-step["clip"], step["clip"])
        past = [x_0, *past][: len(step["c_0"])]
        x = step["c_x"] * x + step["c_m"] * m + sum(c * x_0 for c, x_0 in zip(step["c_0"], past, strict=False))
        x = x + sigma * draw()
    return x


def with_null(folder: Path, told: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The inputs of a guided step: rows of the null condition, and behind them those of the condition."""
    with np.load(folder / "null.npz") as null:
        rows = {name: np.concatenate([np.repeat(null[name], len(told[name]), 0), told[name]]) for name in null.files}
    return {**told, **rows, "x": np.concatenate([told["x"], told["x"]])}


if __name__ == "__main__":
    folder, count, noise = Path(sys.argv[1]), int(sys.argv[2]), np.random.default_rng(int(sys.argv[3]))
    shape = json.loads((folder / "onnx.json").read_text())["shape"]
    condition = dict(np.load(sys.argv[5])) if len(sys.argv) > 5 else {}  # A row for each image
    np.save(sys.argv[4], sample(folder, lambda: noise.standard_normal((count, *shape), np.float32), condition))
