"""Images that walk through all steps together, so that each step is fitted on all of them before they go on."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from ptq_diffusion.artefact.files import holds_tensors, sync_folder, write_tensors
from ptq_diffusion.correction import AskedBatch, Batch, FitPath, FittedCorrection, PathCorrection, StepCorrection
from ptq_diffusion.correction.contract import SomeBatch
from ptq_diffusion.correction.diagnostics import fit_step_diagnosed
from ptq_diffusion.engine.chunks import Chunk
from ptq_diffusion.engine.runtime import track
from ptq_diffusion.model import Denoiser
from ptq_diffusion.network import QuantizedDenoiser, Rescaling
from ptq_diffusion.network.rescaling import named, of_named
from ptq_diffusion.numeric.seed import SampleNoise
from ptq_diffusion.sampler import State, Step, Table


class Walk:
    """What both networks say at a step is kept on the disk until the step after it.

    Memory holds one chunk, the images that layers are rescaled on, and of every image the state of its noise (3 kB).
    A killed walk goes on at the chunk where it was.

    Args:
        model: the float model.
        quantized: the quantized one.
        correction: what is fitted.
        steps: the table.
        wanted: the images.
        float_m: the float output of a chunk at a step of float sampling.
        folder: for what is kept on the way.
    """

    def __init__(
        self,
        model: Denoiser,
        quantized: QuantizedDenoiser,
        correction: PathCorrection,
        steps: Table,
        wanted: Sequence[Chunk],
        float_m: Callable[[Chunk, Step], Tensor],
        folder: Path,
    ) -> None:
        self.model, self.quantized = model, quantized
        self.correction, self.steps, self.wanted = correction, steps, wanted
        self.float_m, self.folder = float_m, folder
        self.fitted: list[StepCorrection] = []
        self._noise: dict[Chunk, Drawn] = {}
        self._ahead: dict[Chunk, tuple[State, State]] = {}

    @torch.inference_mode()
    def go(self, device: torch.device, progress: bool) -> FittedCorrection:
        """Fit all steps."""
        self.model.to(device)
        self.quantized.to(device)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.fitted = list(self._kept())
        for step in track(self.steps[len(self.fitted) :], "fit of the correction", progress):
            self._step(step.i).mkdir(exist_ok=True)
            rescalings, m = self._together(step, device)
            rescaled = self.quantized.at(step.i, rescalings)
            for chunk in self.wanted:
                self._visit(chunk, step, rescaled, m, device)
            self.fitted.append(replace(self._fit(step), rescalings=rescalings))
            self._keep(step)
            shutil.rmtree(self._step(step.i - 1), ignore_errors=True)
        return FittedCorrection(self.steps, self.fitted)

    def _kept(self) -> Iterator[StepCorrection]:
        """What an interrupted walk fitted, from the first step on."""
        for step in self.steps:
            if not (folder := self._fitted(step.i)).is_dir():
                return
            yield FittedCorrection.load(folder).found[0]

    def _together(self, step: Step, device: torch.device) -> tuple[Mapping[str, Rescaling], Tensor]:
        """What the layers compute with at a step, and m of the images that say so; kept for a walk that goes on."""
        if not (together := self.correction.together):
            return {}, torch.empty(0, *self.model.shape)
        file = self._step(step.i) / "together.safetensors"
        if not holds_tensors(file):
            first = [chunk for chunk in self.wanted if chunk.first < together]
            self._ahead = {chunk: self._states(chunk, step, device) for chunk in first}
            y_t = torch.cat([self._ahead[chunk][1].x[: chunk.count] for chunk in first])[:together]
            rescalings, m = self.correction.rescalings(self.model, self.quantized, y_t, step)
            write_tensors(file, named(rescalings) | {"m": m})
        kept = load_file(file)
        return of_named({name: kept[name] for name in kept.keys() - {"m"}}), kept["m"]

    def _fit(self, step: Step) -> StepCorrection:
        before = (self._asked(step.i - 1), self.fitted[-1]) if step.i > 0 else None
        rest = [(chunk, slice(self._among_asked(chunk), chunk.count)) for chunk in self.wanted]
        others = StepBatches(Batch, self._step(step.i), rest)
        return fit_step_diagnosed(self.correction, self._asked(step.i), step, before, others)

    def _keep(self, step: Step) -> None:
        """What was fitted at a step, whole or absent."""
        beside = self.folder / "beside"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        FittedCorrection(self.steps.with_steps([step]), [self.fitted[step.i]]).save(beside)
        sync_folder(beside)
        beside.rename(self._fitted(step.i))

    def _visit(self, chunk: Chunk, step: Step, rescaled: QuantizedDenoiser, m: Tensor, device: torch.device) -> None:
        """Bring a chunk to a step, ask the networks there, and keep what they say; `m` is known of the first images."""
        file = self._step(step.i) / chunk.name
        if holds_tensors(file):
            return
        float_state, state = self._ahead.pop(chunk) if chunk in self._ahead else self._states(chunk, step, device)
        y_t = state.x
        q, features = rescaled.predict(y_t, step)
        assert features is not None, "a quantized network hands over features"
        float_m = self.float_m(chunk, step).to(device)
        kept = {"m": float_m, "q": q, "x_t": y_t, "features": features} | _named(state.past, "past")
        if self.correction.path is FitPath.CORRECTED:
            asked = self._among_asked(chunk)
            known = m[chunk.first : chunk.first + asked].to(device)
            if len(known) < asked:
                known = torch.cat([known, self.model.predict(y_t[len(known) : asked], step).m])
            kept |= {"m": known, "float_m": float_m, "float_x_t": float_state.x.clone()}
            kept |= _named(float_state.past, "float_past")
        write_tensors(file, kept)

    def _states(self, chunk: Chunk, step: Step, device: torch.device) -> tuple[State, State]:
        """The states of float sampling and those on the path, from what was kept one step before."""
        if chunk not in self._noise:
            self._noise[chunk] = Drawn(chunk.noise(self.model.shape))
        z = self._noise[chunk].at(step.i, device)
        if step.i == 0:
            return self.steps.start(z), self.steps.start(z)
        before, found = self.steps[step.i - 1], self.fitted[step.i - 1]
        kept = {name: tensor.to(device) for name, tensor in _read(self._step(before.i) / chunk.name).items()}
        float_before = State(kept["float_x_t"], _past(kept, "float_past"))
        float_state = before.advance(float_before, kept["float_m"], before.sigma, z)
        if self.correction.path is FitPath.FLOAT:
            return float_state, float_state
        m = found.output(kept["q"], kept["x_t"], kept["features"])
        return float_state, before.advance(State(kept["x_t"], _past(kept, "past")), m, found.sigma, z)

    def _asked(self, i: int) -> "StepBatches[AskedBatch]":
        rows = [(chunk, slice(0, self._among_asked(chunk))) for chunk in self.wanted]
        return StepBatches(AskedBatch, self._step(i), rows)

    def _among_asked(self, chunk: Chunk) -> int:
        """How many images of a chunk, the first ones, the float network is asked about on the path."""
        asked = self.correction.asked
        return chunk.count if asked is None else min(max(asked - chunk.first, 0), chunk.count)

    def _step(self, i: int) -> Path:
        return self.folder / f"step-{i:04d}"

    def _fitted(self, i: int) -> Path:
        return self.folder / f"fitted-{i:04d}"


class Drawn:
    """Noise by step; a walk that goes on after an interruption draws what was drawn before it."""

    def __init__(self, noise: SampleNoise) -> None:
        self._noise, self._drawn = noise, 0

    def at(self, i: int, device: torch.device) -> Tensor:
        """The noise of step `i`, which is asked for once and after all steps before it, or without them."""
        assert i >= self._drawn
        while self._drawn < i:
            self._noise.draw()
            self._drawn += 1
        self._drawn += 1
        return self._noise.draw(device)


class StepBatches(Sequence[SomeBatch]):
    """Images of the chunks of one step, each chunk read when it is asked for.

    Args:
        kind: with m or without.
        folder: of the step.
        rows: which images of every chunk; a chunk of which there are none is left out.
    """

    def __init__(self, kind: type[SomeBatch], folder: Path, rows: Sequence[tuple[Chunk, slice]]) -> None:
        self._kind, self._folder = kind, folder
        self._rows = [(chunk, images) for chunk, images in rows if images.start < images.stop]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> SomeBatch:  # type: ignore[override]
        chunk, images = self._rows[place]
        kept = _read(self._folder / chunk.name)
        names = [field.name for field in fields(self._kind) if field.name != "first"]
        return self._kind(chunk.first + images.start, **{name: kept[name][images] for name in names})


def _read(file: Path) -> dict[str, Tensor]:
    """What was kept of a chunk; on the float path its states are those of float sampling."""
    kept = load_file(file)
    aliases = {"float_m": kept["m"], "float_x_t": kept["x_t"]} | _named(_past(kept, "past"), "float_past")
    return aliases | kept


def _named(past: Sequence[Tensor], name: str) -> dict[str, Tensor]:
    """Earlier predictions of x_0 under name/0, name/1, the latest first."""
    return {f"{name}/{j}": x_0.clone() for j, x_0 in enumerate(past)}


def _past(tensors: Mapping[str, Tensor], name: str) -> tuple[Tensor, ...]:
    """The predictions that `_named` gave names to."""
    return tuple(tensors[key] for key in sorted(key for key in tensors if key.startswith(f"{name}/")))
