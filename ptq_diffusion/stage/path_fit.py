"""Fit along a path, step by step: a step is fitted on all images before they are advanced to the next."""

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from lightning import Fabric
from safetensors.torch import load_file
from torch import Tensor

from ptq_diffusion.artefact.files import sync_folder
from ptq_diffusion.artefact.tensors import holds_tensors, write_tensors
from ptq_diffusion.correction import (
    Correction,
    FittedCorrection,
    PairedBatch,
    PathBatch,
    PathEvidence,
    Reads,
    StepCorrection,
)
from ptq_diffusion.correction.diagnostics import fit_step_diagnosed
from ptq_diffusion.correction.fitted import absorbing
from ptq_diffusion.correction.path_state import PathState
from ptq_diffusion.engine.chunks import Chunk
from ptq_diffusion.engine.runtime import track
from ptq_diffusion.engine.synchronisation import receiving, send_all, synchronised
from ptq_diffusion.model import Denoiser
from ptq_diffusion.model.condition import rows_of
from ptq_diffusion.network import QuantizedDenoiser, Rescaling
from ptq_diffusion.network.rescaling import rescaling_tensors, rescalings_of_tensors
from ptq_diffusion.sampler import State, Step, Table
from ptq_diffusion.stage.fitting.images import Images, ReplayedNoise
from ptq_diffusion.stage.fitting.step_files import ChunkFiles, StepBatches, past_of, past_tensors

RESCALINGS = "rescalings.safetensors"


class PathFit:
    """A correction fitted along a path; both networks' outputs at a step stay on the disk until the step after it.

    Memory holds one chunk, the images that layers are rescaled on, and of every image the state of its noise (3 kB).
    The files of two steps are mapped. A fit that was killed goes on at the chunk where it was.

    Args:
        model: the float model.
        quantized: the quantized one.
        correction: the method, which reads a path.
        steps: the table.
        images: the images.
        folder: for the files of the steps.
    """

    def __init__(
        self,
        model: Denoiser,
        quantized: QuantizedDenoiser,
        correction: Correction[PathEvidence],
        steps: Table,
        images: Images,
        folder: Path,
    ) -> None:
        self.model, self.quantized = model, quantized
        self.correction, self.steps, self.folder = correction, steps, folder
        self.images, self.chunks = images, images.chunks
        self.float_m, self.conditions = images.float_m, images.conditions
        self.fitted: list[StepCorrection] = []
        self._noise: dict[Chunk, ReplayedNoise] = {}
        self._next_states: dict[Chunk, tuple[State, State]] = {}
        self._files = ChunkFiles()

    @torch.inference_mode()
    def fit(self, fabric: Fabric, title: str, progress: bool) -> FittedCorrection:
        """Fit all steps; the devices share the images, and the first of them fits each step on what all have written.

        Args:
            fabric: of this device, one of those that share the folder.
            title: what the progress bar calls the work.
            progress: whether there is a bar.
        """
        self._begin(fabric)
        for step in track(self.steps[len(self.fitted) :], title, progress and fabric.is_global_zero):
            self._fit_step(step, fabric)
        return self.correction.assembled(self.fitted, self.steps)

    def _begin(self, fabric: Fabric) -> None:
        """Read the steps that are fitted already, and look ahead where the correction does."""
        device, first, found = fabric.device, fabric.is_global_zero, 0
        with synchronised(fabric):
            self.model.to(device)
            self.quantized.to(device)
            self.folder.mkdir(parents=True, exist_ok=True)
            if first:
                found = len(list(self._corrections_on_disk()))
        with synchronised(fabric):
            # The first device looks for all: on a shared disk, devices may see new files at different times.
            found = fabric.broadcast(found)
            self.fitted = [self._correction_on_disk(i) for i in range(found)]
            if first and found < len(self.steps):
                count = self.correction.images_for_rescaling
                path = self.images.float_states(count, self.model.shape, self.steps, device)
                self.correction = self.correction.ahead(self.model, self.quantized, path)

    def _fit_step(self, step: Step, fabric: Fabric) -> None:
        """Fit one step: nobody fits before all images are there, and nobody goes on before the step is fitted."""
        file = self._step(step.i) / RESCALINGS
        with synchronised(fabric):
            file.parent.mkdir(exist_ok=True)
            missing = self.correction.images_for_rescaling > 0 and not holds_tensors(file)
        with synchronised(fabric):
            if fabric.broadcast(missing):
                self._rescale(step, fabric, file)
        with synchronised(fabric):
            rescalings, m = self._rescalings(step)
            rescaled = self.quantized.at(step.i, rescalings)
            for chunk in self.chunks[fabric.global_rank :: fabric.world_size]:
                self._visit(chunk, step, rescaled, m, fabric.device)
        with synchronised(fabric):
            if fabric.is_global_zero:
                fitted = replace(self._fit_on_files(step), rescalings=rescalings)
                # The path goes on with the sigma' that sampling will use, of a multistep sampler too.
                steps = self.steps.with_steps(self.steps[: step.i + 1])
                self._store(step, absorbing([*self.fitted, fitted], steps)[-1])
        with synchronised(fabric):
            self.fitted.append(self._correction_on_disk(step.i))
            self._files.forget(self._step(step.i - 1))
            if fabric.is_global_zero:
                shutil.rmtree(self._step(step.i - 1), ignore_errors=True)

    def _corrections_on_disk(self) -> Iterator[StepCorrection]:
        """The steps that an interrupted fit has fitted, from the first on."""
        for step in self.steps:
            if not self._correction_folder(step.i).is_dir():
                return
            yield self._correction_on_disk(step.i)

    def _correction_on_disk(self, i: int) -> StepCorrection:
        return FittedCorrection.load(self._correction_folder(i)).corrections[0]

    def _rescale(self, step: Step, fabric: Fabric, file: Path) -> None:
        """Write the layers' rescalings at a step, and m of the images that they are computed from, to a file.

        The first device rescales. The second, if there is one, asks the float network at the same time.
        """
        correction = self.correction
        shared = fabric.world_size > 1 and correction.is_divisible
        if fabric.global_rank > int(shared):
            return
        states = partial(self._first_states, step, fabric.device)
        # States are made where the other process waits for values, which learns of a failure there.
        if fabric.global_rank == 1:
            send_all(0, lambda send: correction.send_targets(self.model, self.quantized, states(), send))
            return
        if shared:
            with receiving(1) as received:
                rescalings, m = correction.rescalings_received(received, self.quantized, states())
        else:
            rescalings, m = correction.rescalings(self.model, self.quantized, states())
        write_tensors(file, rescaling_tensors(rescalings) | {"m": m})

    def _first_states(self, step: Step, device: torch.device) -> PathState:
        """The states on the path that layers are rescaled on."""
        count = self.correction.images_for_rescaling
        chunks = [chunk for chunk in self.chunks if chunk.first < count]
        self._next_states = {chunk: self._states(chunk, step, device) for chunk in chunks}
        y_t = torch.cat([self._next_states[chunk][1].x[: chunk.count] for chunk in chunks])[:count]
        return PathState(y_t, step, rows_of(self.images.condition(chunks, device), slice(len(y_t))))

    def _rescalings(self, step: Step) -> tuple[Mapping[str, Rescaling], Tensor]:
        """The layers' rescalings at a step, and m of the images that they are computed from, (N, C, H, W)."""
        if not self.correction.images_for_rescaling:
            return {}, torch.empty(0, *self.model.shape)
        tensors = load_file(self._step(step.i) / RESCALINGS)
        return rescalings_of_tensors({name: tensors[name] for name in tensors.keys() - {"m"}}), tensors["m"]

    def _fit_on_files(self, step: Step) -> StepCorrection:
        before = (self._paired(step.i - 1), self.fitted[-1]) if step.i > 0 else None
        rows = [(chunk, slice(self._count_with_m(chunk), chunk.count)) for chunk in self.chunks]
        unpaired = StepBatches(PathBatch, self._step(step.i), rows, self._files)
        evidence = PathEvidence(self._paired(step.i), unpaired, is_last=step == self.steps[-1])
        return fit_step_diagnosed(self.correction, evidence, step, before)

    def _store(self, step: Step, correction: StepCorrection) -> None:
        """Write the correction of a step, whole or not at all."""
        beside = self.folder / "beside"
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        FittedCorrection(self.steps.with_steps([step]), [correction]).save(beside)
        sync_folder(beside)
        beside.rename(self._correction_folder(step.i))

    def _visit(self, chunk: Chunk, step: Step, rescaled: QuantizedDenoiser, m: Tensor, device: torch.device) -> None:
        """Bring a chunk to a step, ask the networks there and write their outputs; `m` is known of the first images."""
        file = self._step(step.i) / chunk.name
        if holds_tensors(file):
            return
        known = chunk in self._next_states
        float_state, state = self._next_states.pop(chunk) if known else self._states(chunk, step, device)
        y_t, condition = state.x, chunk.condition(self.conditions, device)
        q, features, variance = rescaled.predict(y_t, step, condition)
        assert features is not None, "a quantized network hands over features"
        float_m, float_variance = step.parted(self.float_m(chunk, step).to(device), q.shape[1])
        tensors = {"m": float_m, "q": q, "x_t": y_t, "features": features} | past_tensors(state.past, "past")
        if self.correction.reads is Reads.CORRECTED_PATH:
            count = self._count_with_m(chunk)
            here = m[chunk.first : chunk.first + count].to(device)
            if len(here) < count:
                rest = slice(len(here), count)
                here = torch.cat([here, self.model.predict(y_t[rest], step, rows_of(condition, rest)).m])
            tensors |= {"m": here, "float_m": float_m, "float_x_t": float_state.x.clone()}
            tensors |= past_tensors(float_state.past, "float_past")
        if variance is not None and float_variance is not None:
            tensors |= {"variance": variance.clone(), "float_variance": float_variance.clone()}
        write_tensors(file, tensors)

    def _states(self, chunk: Chunk, step: Step, device: torch.device) -> tuple[State, State]:
        """The states of float sampling and those on the path, from the files of the step before."""
        if chunk not in self._noise:
            self._noise[chunk] = ReplayedNoise(chunk.noise(self.model.shape))
        z = self._noise[chunk].at(step.i, device)
        if step.i == 0:
            return self.steps.start(z), self.steps.start(z)
        before, correction = self.steps[step.i - 1], self.fitted[step.i - 1]
        written = self._files.tensors(self._step(before.i) / chunk.name)
        tensors = {name: tensor.to(device) for name, tensor in written.items()}
        float_before = State(tensors["float_x_t"], past_of(tensors, "float_past"))
        spread = before.spread(tensors.get("float_variance"))
        float_state = before.advance(float_before, tensors["float_m"], spread, z)
        if self.correction.reads is Reads.FLOAT_PATH:
            return float_state, float_state
        m = correction.output(tensors["q"], tensors["x_t"], tensors["features"])
        state = State(tensors["x_t"], past_of(tensors, "past"))
        spread = correction.spread(before, tensors.get("variance"))
        return float_state, before.advance(state, m, spread, z)

    def _paired(self, i: int) -> StepBatches[PairedBatch]:
        rows = [(chunk, slice(0, self._count_with_m(chunk))) for chunk in self.chunks]
        return StepBatches(PairedBatch, self._step(i), rows, self._files)

    def _count_with_m(self, chunk: Chunk) -> int:
        """The number of images of a chunk, its first ones, that the float network is asked about on the path."""
        count = self.correction.images_with_m
        return chunk.count if count is None else min(max(count - chunk.first, 0), chunk.count)

    def _step(self, i: int) -> Path:
        return self.folder / f"step-{i:04d}"

    def _correction_folder(self, i: int) -> Path:
        return self.folder / f"fitted-{i:04d}"
