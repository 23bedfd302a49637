"""A fitted correction as the scheduler of a stock diffusers pipeline."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ptq_diffusion.correction.fitted import FittedCorrection
from ptq_diffusion.sampler.process import FLOW
from ptq_diffusion.sampler.step import State, Step

BETA_SCHEDULE = (
    "the table of a CorrectedScheduler, which only itself can follow (use DDPMPipeline, which keeps its scheduler),"
)
"""The configuration's mark, by which diffusers refuses to make another scheduler of it and lose the correction."""


class CorrectedScheduler(SchedulerMixin, ConfigMixin):
    """x_s = F(x_t, m~(q, x_t)) + sigma' z: F of the table, m~ and sigma' of the correction, q from the pipeline's UNet.

    It belongs to the quantized network that it was fitted for, as `pipe.unet` of a DDPMPipeline. Beside a
    `CorrectedNetwork`, which says m~ itself, it is made of the correction without its repairs. DDIMPipeline is not
    supported: it turns its scheduler into a DDIMScheduler and tells it an eta, which a fitted table has already.

    Noise is drawn at every step, also where sigma' is 0, as in `sampler.sample`. So a pipeline with the generators
    `[numeric.seed.generator("images", seed, i) for i in ...]`, one for each image, draws the images of that loop.

    Args:
        correction: fitted to one table, a function of q and x_t.

    Raises:
        ValueError: the correction needs the features, other layers or a second evaluation of the network, or two steps
            of its table have the same time.
    """

    order = 1

    def __init__(self, correction: FittedCorrection) -> None:
        if correction.needs_features or correction.rescales:
            reads = "rescales its layers" if correction.rescales else "needs the input of its output layer"
            raise ValueError(
                "expected a correction that is a function of the output and the state, got one that reaches into the "
                f"network: it {reads}, and a pipeline's scheduler has no network; take the pipeline of "
                "goal=export, whose unet, a CorrectedNetwork, repairs its own output and leaves the rest to "
                "CorrectedScheduler(correction.without_repairs())"
            )
        if correction.evaluations:
            raise ValueError(
                "expected a correction that asks the network once a step, got one that estimates a bias on the way by "
                "asking twice, and a pipeline's scheduler has no network; draw its images with ptq-diffusion "
                "(goal=samples_corrected), or fit another, such as correction=bias"
            )
        self.correction = correction
        self.timesteps = torch.tensor([step.t for step in correction.steps])
        self._table = correction.steps.with_distinct_times()
        self.init_noise_sigma = self._table.init_scale
        self._past: tuple[Tensor, ...] = ()
        self._scaled: float | None = None
        # A FluxPipeline leaves the noise levels to a scheduler of flow sigmas.
        flow = {"use_flow_sigmas": True} if correction.steps.prediction == FLOW else {}
        # A pipeline computes the mu that it passes to `set_timesteps` from these.
        shift = {} if correction.steps.dynamic_shift is None else correction.steps.dynamic_shift.options
        self.register_to_config(num_inference_steps=len(correction.steps), beta_schedule=BETA_SCHEDULE, **flow, **shift)

    @classmethod
    def from_pretrained(  # type: ignore[override, unused-ignore]
        cls, pretrained_model_name_or_path: str | Path, subfolder: str | None = None
    ) -> "CorrectedScheduler":
        """Load what `save_pretrained` wrote, or an artefact of the stage `fit`, `outputs/store/fit/<signature>/`.

        Raises:
            FileNotFoundError: the folder lacks a file.
            ValueError: the correction is none for a pipeline, or of an unknown kind.
        """
        folder = Path(pretrained_model_name_or_path)
        return cls(FittedCorrection.load(folder / subfolder if subfolder else folder))

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **options: Any) -> "CorrectedScheduler":  # noqa: ANN401, ARG003
        """Always refused: diffusers' way from one scheduler to another cannot carry what was fitted.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "expected a folder, a configuration does not hold the fitted correction; "
            "use CorrectedScheduler.from_pretrained(folder)"
        )

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **options: Any) -> None:  # noqa: ANN401
        """Write the correction (json and safetensors) beside diffusers' `scheduler_config.json`."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.correction.save(folder)
        super().save_pretrained(folder, push_to_hub, **options)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at the first step, as pipelines of flow matching say; steps are found by their times.

        Raises:
            ValueError: another step.
        """
        if begin_index != 0:
            raise ValueError(
                f"expected to begin at the first step, which the correction was fitted for, got step {begin_index}; "
                "draw from noise"
            )

    def set_timesteps(
        self,
        num_inference_steps: int,
        device: torch.device | str | None = None,
        mu: float | None = None,
    ) -> None:
        """Begin.

        Args:
            num_inference_steps: the correction's.
            device: where times are wanted.
            mu: the shift that pipelines of flow matching tell by the size of an image. The table has that of the size
                which it was fitted for; as in stock schedulers it is not read where noise levels depend on no size.

        Raises:
            ValueError: another number of steps than the correction's, or the shift of another size.
        """
        if self._table.dynamic_shift is not None and mu is not None:
            self._table.dynamic_shift.require(mu)
        if num_inference_steps != len(self._table):
            raise ValueError(
                f"expected num_inference_steps={len(self._table)}, for which the correction was fitted, got "
                f"{num_inference_steps}; call the pipeline with num_inference_steps={len(self._table)}, or fit it for "
                "another number with sampler.steps"
            )
        self.timesteps, self._past = self.timesteps.to(device), ()

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor) -> Tensor:
        """The state as the network is to see it, as it is but where a sampler scales x_T.

        Raises:
            ValueError: a time that the table does not have.
        """
        step = self._table.at(torch.as_tensor(timestep).item())
        self._scaled = step.t
        return sample if step.input_scale == 1 else step.input_scale * sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
        eta: float = 0.0,
        **options: object,
    ) -> SchedulerOutput | tuple[Tensor]:
        """Advance the state from x_t to x_s.

        Args:
            model_output: q, (B, C, H, W), or (B, 2C, H, W) of a network that predicts a variance too, which is read
                where the table's is learned.
            timestep: t.
            sample: x_t, (B, C, H, W).
            generator: where z comes from, one for all or one for each image.
            return_dict: x_s as `prev_sample`, or in a tuple.
            eta: 0, which stock pipelines pass on; the noise is that of the fitted table.
            options: none is known.

        Raises:
            ValueError: a time that the table does not have, an option of another scheduler, such as eta, or a pipeline
                that did not scale the network's input where the table does.
            FloatingPointError: x_s is not finite.
        """
        _require_none(eta, options)
        step = self._table.at(torch.as_tensor(timestep).item())
        q, variance = step.parted(model_output, sample.shape[1])
        self._require_scaled(step)
        m = self.correction.output(q, sample, None, step)
        z = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
        state = step.advance(State(sample, self._past), m, self.correction.sigma(step, variance), z)
        self._past = state.past
        _require_finite(state.x, step)
        return SchedulerOutput(prev_sample=state.x) if return_dict else (state.x,)

    def _require_scaled(self, step: Step) -> None:
        if step.input_scale != 1 and self._scaled != step.t:
            raise ValueError(
                f"expected a pipeline that scales the network's input, by {step.input_scale:.6g} at t = {step.t}, got "
                "one that does not, such as DDPMPipeline; take the pipeline of goal=export, whose network does it "
                "itself, or set +sampler.scheduler.timestep_spacing=leading"
            )


def _require_none(eta: float, options: Mapping[str, object]) -> None:
    if eta:
        raise ValueError(
            f"expected no eta in the call, got {eta}: the fitted table has the noise of its own; leave it out, and for "
            "another fit a correction with sampler.eta=VALUE"
        )
    if options:
        raise ValueError(
            f"expected no other options, got {', '.join(options)}: the fitted table has its own; use DDPMPipeline, "
            "which passes none"
        )


def _require_finite(x_s: Tensor, step: Step) -> None:
    if not torch.isfinite(x_s).all():
        raise FloatingPointError(
            f"the state after t = {step.t} is not finite; check that pipe.unet is the quantized network that the "
            "correction was fitted for"
        )
