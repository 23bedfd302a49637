"""Steps of DDIM's form, which most one-step samplers have."""

import dataclasses

from ptq_diffusion.sampler.process import Process
from ptq_diffusion.sampler.step import Step


def ddim_form(
    i: int, t: float, process: Process, signal_s: float, direction: float, sigma: float, clip: float | None = None
) -> Step:
    """The step x_s = signal_s x_0 + direction epsilon + sigma z, whose epsilon the unclipped output implies.

    Where direction^2 + sigma^2 is the variance of the noise at s, x_s is of the forward process.

    Args:
        i: the row.
        t: the time that the network is told.
        process: the forward process at t, with the network's prediction.
        signal_s: the coefficient of x_0 at s.
        direction: the coefficient of epsilon.
        sigma: the standard deviation of the noise that is added.
        clip: the radius that x_0 is clipped to, or None.

    Raises:
        ValueError: the output says nothing of x_0 at t, see `Process.coefficients`.
    """
    p_x, p_m, e_x, e_m = process.coefficients()
    return Step(
        i=i,
        t=t,
        input_scale=1.0,
        c_x=direction * e_x,
        c_m=direction * e_m,
        c_0=(signal_s,),
        p_x=p_x,
        p_m=p_m,
        sigma=sigma,
        clip=clip,
        signal=process.signal,
        noise=process.noise,
        direction=direction,
    )


def from_scaled(step: Step, scale: float) -> Step:
    """The same step from a state that has to be multiplied with `scale` before it is the step's own x_t."""
    return dataclasses.replace(
        step,
        input_scale=step.input_scale * scale,
        c_x=step.c_x * scale,
        p_x=step.p_x * scale,
        signal=step.signal / scale,
        noise=step.noise / scale,
    )


def step_from(step: Step, t: float, process: Process) -> Step:
    """The same step, to the same x_s with the same noise added, from a state at another time.

    Args:
        step: of DDIM's form.
        t: the time to start from.
        process: the forward process there, with the prediction of the step's table.

    Raises:
        ValueError: the step is not of DDIM's form.
    """
    if step.direction is None:
        raise ValueError(
            "expected a step of DDIM's form, which can start from another time, got one of another sampler; "
            "use sampler=ddim (eta=1 is DDPM)"
        )
    p_x, p_m, e_x, e_m = process.coefficients()
    c_x, c_m = step.direction * e_x, step.direction * e_m
    return dataclasses.replace(
        step, t=t, c_x=c_x, c_m=c_m, p_x=p_x, p_m=p_m, signal=process.signal, noise=process.noise
    )
