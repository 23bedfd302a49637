"""A quantized network that repairs its own output, as the unet or transformer of a stock diffusers pipeline."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from ptq_diffusion.correction.fitted import COEFFICIENTS, CONFIG, FittedCorrection
from ptq_diffusion.correction.pipeline.folding import FoldedLayer, fold
from ptq_diffusion.correction.pipeline.guidance_watch import GuidanceWatch, doubled_state
from ptq_diffusion.model import Condition, Denoiser, DiffusersDenoiser, Guided, Output
from ptq_diffusion.network import Backend, QuantizedDenoiser, Simulated, load_quantized, save_quantized
from ptq_diffusion.network.saving import FILES
from ptq_diffusion.sampler.step import Step
from ptq_diffusion.sampler.table import Table

FOLDER = ("config.json", CONFIG, COEFFICIENTS, *FILES)
"""The files of a saved network beside its weights."""
CLOSE = 1e-6
"""The relative error that rounding to float32 may leave of a time."""


class CorrectedNetwork(ModelMixin, ConfigMixin):
    """m~(x_t, t): q and the features of a quantized network through all repairs of the step whose time is t.

    With `CorrectedScheduler(correction.without_repairs())`, which does the table and sigma', a stock DDPMPipeline draws
    the images of `sampler.sample`, whatever the correction reads. It answers at the times of its table only.

    A network that was guided answers every row without guidance and leaves that to the pipeline, which must be told the
    same scale, `config.guidance_scale`: repairs are affine, so that the guided combination of repaired rows is the
    repaired combination, which the correction was fitted for. Another scale is refused at the second step, where the
    states tell it.

    Args:
        quantized: the network, as its own settings have it.
        correction: fitted to it.
        embedded: the guidance that the network was told while it was fitted; None of one that embeds none.

    Raises:
        ValueError: the network has not exactly one output layer, two steps of the table have the same time, or the
            correction asks the network more than once a step, or guidance is none that stock pipelines have: below 1,
            or at some of the steps; or a correction of the differences between its rows has no guidance.
    """

    config_name = "config.json"

    def __init__(
        self, quantized: QuantizedDenoiser, correction: FittedCorrection, embedded: float | None = None
    ) -> None:
        super().__init__()
        if correction.evaluations:
            raise ValueError(
                "expected a correction that asks the network once a step, got one that estimates a bias on the way; "
                "draw its images with goal=samples_corrected"
            )
        self.quantized, self.correction = quantized, correction
        rescaled = quantized.rescaled(correction.rescalings)
        self.rescaled = rescaled.paired() if correction.pairs_rows else rescaled.unguided()
        denoiser = quantized.unguided().denoiser
        self._null_first = not isinstance(denoiser, DiffusersDenoiser) or denoiser.family.null_first
        self._table, self._embedded = correction.steps.with_distinct_times(), embedded
        scale = stock_scale(quantized.denoiser, correction.steps)
        if correction.pairs_rows and scale == 1:
            raise ValueError(
                "expected a network with guidance, between whose rows the correction has differences, got one without; "
                "quantize it with the guidance that the correction was fitted for"
            )
        beside = {"guidance_scale": scale, "guidance_embedded": embedded, "backend": quantized.backend.name}
        self.register_to_config(**self.described() | beside)
        self._watch = GuidanceWatch(scale)

    def described(self) -> dict[str, Any]:
        """The configuration that stock pipelines look up in the network that it stands for."""
        channels, *size = self.quantized.shape
        denoiser = self.rescaled.unguided().denoiser
        described = denoiser.config if isinstance(denoiser, DiffusersDenoiser) else {}
        square = size[0] if size[0] == size[1] else size
        # C output channels, also where a variance is behind them, which pipelines would drop before the scheduler.
        return described | {"in_channels": channels, "out_channels": channels, "sample_size": square}

    @classmethod
    def from_pretrained(  # type: ignore[override, unused-ignore]
        cls,
        pretrained_model_name_or_path: str | Path,
        subfolder: str | None = None,
        torch_dtype: torch.dtype | None = None,
        device_map: object = None,
        **options: object,  # noqa: ARG003
    ) -> Self:
        """Load what `save_pretrained` wrote; json and safetensors are read, nothing else, and no code is.

        Args:
            pretrained_model_name_or_path: the folder.
            subfolder: where in it, `unet` in that of a pipeline.
            torch_dtype: float32, in which the ranges hold.
            device_map: none; move the pipeline with `pipe.to`.
            options: how a pipeline has the files of other networks fetched and read.

        Raises:
            FileNotFoundError: the folder lacks a file.
            ValueError: the files are broken, do not belong together or name what does not exist, or another type or
                device is asked for.
        """
        folder = Path(pretrained_model_name_or_path) / (subfolder or "")
        if missing := [name for name in FOLDER if not (folder / name).is_file()]:
            raise FileNotFoundError(
                f"expected a folder that CorrectedNetwork.save_pretrained wrote, {folder} lacks {', '.join(missing)}; "
                "write one with goal=export"
            )
        if torch_dtype not in (None, torch.float32) or device_map is not None:
            raise ValueError(
                f"expected torch.float32 and no device_map, got {torch_dtype} and {device_map}; "
                "load it without and move the pipeline with pipe.to(device)"
            )
        config = cls.load_config(folder)
        quantized = load_quantized(folder).to_backend(config.get("backend", Simulated.name))
        return cls(quantized, FittedCorrection.load(folder), config.get("guidance_embedded"))

    def to_backend(self, backend: Backend | str) -> Self:
        """The same network and correction computed by another backend, see `QuantizedDenoiser.to_backend`."""
        return type(self)(self.quantized.to_backend(backend), self.correction, self._embedded)

    def save_pretrained(self, save_directory: str | Path) -> None:  # type: ignore[override, unused-ignore]
        """Write `config.json`, the quantized network (`quantized.json`, `quantized.safetensors`) and the correction."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.save_config(folder)
        save_quantized(self.quantized, folder)
        self.correction.save(folder)

    def output_layers(self) -> Sequence[FoldedLayer]:
        """Weight sets of the output layer, one for every step, as `fold` makes them.

        Folding rounds differently in the last bit, so this network itself repairs behind its layer. Rescalings of other
        layers are beside it, in `correction.corrections`.

        Raises:
            ValueError: a filter does not fold.
        """
        channels = self.quantized.shape[0]
        corrections = enumerate(self.correction.corrections)
        return [fold(self.rescaled.output_layer, i, correction, channels) for i, correction in corrections]

    @property
    def dtype(self) -> torch.dtype:
        """The type of states, float32, whatever integers the network holds."""
        return torch.float32

    def forward(
        self,
        sample: Tensor,
        timestep: float | Tensor,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
        **options: object,
    ) -> UNet2DOutput | tuple[Tensor]:
        """m~, (B, C, H, W), a learned variance behind it, (B, 2 C, H, W), as `.sample` or else in a tuple.

        Args:
            sample: x_t, (B, C, H, W).
            timestep: t, one for all.
            encoder_hidden_states: embeddings of prompts, (B, L, D), of a network that reads them.
            class_labels: (B,), of a network that reads them.
            return_dict: which of the two.
            options: others of stock networks, each None.

        Raises:
            ValueError: see `answer`.
        """
        tensors = {"embeddings": encoder_hidden_states, "labels": class_labels}
        present = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        condition = Condition(**present) if present else None
        return self.returned(self.answer(sample, timestep, condition, options), return_dict)

    def answer(
        self, x_t: Tensor, timestep: float | Tensor, condition: Condition | None, options: Mapping[str, object]
    ) -> Tensor:
        """m~, (B, C, H, W), and a learned variance behind it, (B, 2 C, H, W).

        Args:
            x_t: the states, (B, C, H, W).
            timestep: t, one for all.
            condition: of the B rows.
            options: of stock networks' calls that are not read.

        Raises:
            ValueError: a time that the table does not have, or several, states in another type than float32, an option
                that is not None or empty, or states that another scale of guidance led to.
        """
        _require_none(options)
        if x_t.dtype != torch.float32:
            raise ValueError(f"expected states in float32, in which the ranges hold, got {x_t.dtype}")
        times = torch.as_tensor(timestep).unique().tolist()
        if len(times) != 1:
            raise ValueError(
                f"expected a time of the table for all images, got {', '.join(map(str, times))}; "
                "draw with the scheduler and the steps that it was fitted for"
            )
        step = self._table.at(times[0])
        self._watch.before(x_t, step)
        q, features, variance = self._asked(x_t, step, condition)
        m = self.correction.output(q, x_t, features, step)
        self._watch.behind(x_t, m, step, self.correction.sigma(step, variance))
        return step.joined(m, variance)

    def _asked(self, x_t: Tensor, step: Step, condition: Condition | None) -> Output:
        """The network's answer to every row; rows of pairs in the order that its layers expect."""
        if not self.correction.pairs_rows:
            return self.rescaled.predict(x_t, step, condition)
        if doubled_state(x_t) is None:
            raise ValueError(
                "expected two rows of one state for each image, between which layers quantize differences, got "
                f"{len(x_t)} of other states; call the pipeline with guidance_scale={self.config.guidance_scale:g}"
            )
        if self._null_first:
            return self.rescaled.predict(x_t, step, condition)
        half = len(x_t) // 2
        swapped = torch.arange(len(x_t)).roll(half)
        m, features, variance = self.rescaled.predict(x_t, step, None if condition is None else condition.rows(swapped))
        assert features is not None, "a quantized network tells the input of its output layer"
        return Output(m.roll(half, 0), features.roll(half, 0), None if variance is None else variance.roll(half, 0))

    def nearest(self, t: float) -> float:
        """The time of the table that is t but for rounding, or else t itself."""
        near = min((step.t for step in self._table), key=lambda time: abs(time - t))
        return near if abs(near - t) <= CLOSE * max(abs(t), 1.0) else t

    def require_embedded(self, guidance: Tensor | None) -> None:
        """Refuse another guidance than the network was told while the correction was fitted.

        Raises:
            ValueError: it is another.
        """
        scales = None if guidance is None else guidance.unique().tolist()
        if scales != (None if self._embedded is None else [float(torch.tensor(self._embedded))]):
            raise ValueError(
                f"expected guidance_scale={self._embedded}, which the network was told while it was corrected, got "
                f"{scales}; call the pipeline with guidance_scale={self._embedded}, or export it with "
                "condition.guidance.embedded=VALUE"
            )

    @staticmethod
    def returned(answer: Tensor, return_dict: bool) -> UNet2DOutput | tuple[Tensor]:
        """An answer as stock networks return it."""
        return UNet2DOutput(sample=answer) if return_dict else (answer,)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        tensors = [tensor for tensor in (*self.parameters(), *self.buffers()) if tensor.is_floating_point()]
        for dtype in {tensor.dtype for tensor in tensors}:
            if (other := fn(torch.empty(0, dtype=dtype)).dtype) is not dtype:
                raise ValueError(
                    f"expected the dtypes that the network was quantized in, got {other} for {dtype}; move the "
                    "pipeline with pipe.to(device) alone, or export it with another model.dtype"
                )
        return super()._apply(fn, recurse)


def _require_none(options: Mapping[str, object]) -> None:
    if unread := [name for name, option in options.items() if option is not None and option != {}]:
        raise ValueError(
            f"expected states, a time and a condition, got {', '.join(unread)}, which a CorrectedNetwork does not "
            "read; leave it out of the pipeline's call"
        )


def stock_scale(denoiser: Denoiser, steps: Table) -> float:
    """The scale of guidance to tell a stock pipeline, 1 of none.

    Args:
        denoiser: float or quantized, guided or not.
        steps: the table.

    Raises:
        ValueError: the guidance is none that stock pipelines have.
    """
    if not isinstance(denoiser, Guided) or denoiser.scale == 1:
        return 1.0
    if denoiser.scale < 1 or any(denoiser.rows_per_image(step) == 1 for step in steps):
        raise ValueError(
            f"expected guidance above 1 and at all steps, as stock pipelines have it, got {denoiser.scale} within "
            f"{list(denoiser.interval)} of t / T; set condition.guidance.scale=1 for none, or draw its images with "
            "goal=samples_corrected"
        )
    return denoiser.scale
