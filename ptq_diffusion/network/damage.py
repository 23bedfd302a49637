"""First-order damage of fewer bits in one layer at one step, measured by the adjoint of sampling.

Legend: v (B, C, H, W), a random direction in which x_0 is read; g_l, the gradient of <v, x_0> by the output of layer l
at one step; e_l, how quantization changes that output. To first order <v, x_0> changes by <g_l, e_l>, and over
directions v of independent standard normal numbers E <v, dx_0>^2 = |dx_0|^2: one backward pass through a step serves
all layers.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ptq_diffusion.model import Condition, Denoiser
from ptq_diffusion.network.layer import QuantizedLayer
from ptq_diffusion.network.rescaling import Rescaling, Spread
from ptq_diffusion.quantizer import Quantizer
from ptq_diffusion.sampler import State, Step


@dataclass(frozen=True)
class LayerCall:
    """The input and the output of one layer in one forward.

    Args:
        x: its input, (B, ...).
        y: its output, (B, ...).
        probe: zeros added to the output, by which gradients are taken.
    """

    x: Tensor
    y: Tensor
    probe: Tensor


@contextmanager
def recording(network: nn.Module, names: Sequence[str], calls: dict[str, LayerCall]) -> Iterator[None]:
    """Within this context the calls of layers are recorded, and zeros with a gradient are added to their outputs.

    A layer that is computed anew on the same input, as in a DiT, has the gradient by both outputs.

    Raises:
        ValueError: a layer is called on two inputs in one forward, so that one set of bits would serve two places.
    """

    def record(name: str, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if name not in calls:
            probe = torch.zeros_like(output, requires_grad=True)
            calls[name] = LayerCall(inputs[0].detach(), output.detach(), probe)
        elif not torch.equal(calls[name].x, inputs[0]):
            raise ValueError(f"expected a network that computes every layer once, this one computes {name} twice")
        return output + calls[name].probe

    with ExitStack() as hooks:
        for name in names:
            hook = network.get_submodule(name).register_forward_hook(
                lambda _, inputs, output, name=name: record(name, inputs, output)
            )
            hooks.enter_context(hook)
        yield


@dataclass(frozen=True)
class Adjoint:
    """Gradients of <v, x_0> at one step.

    Args:
        state: the gradients by x_t and by the earlier predictions of x_0, from which the step before goes on backwards.
        calls: the call of every layer, by name.
        gradients: the gradient by the output of every layer, (B, ...), by name.
    """

    state: State
    calls: Mapping[str, LayerCall]
    gradients: Mapping[str, Tensor]


def step_adjoint(
    model: Denoiser,
    names: Sequence[str],
    x_t: Tensor,
    step: Step,
    adjoint: State,
    condition: Condition | None = None,
) -> Adjoint:
    """Take one step backwards: from the gradients by the state behind it to those before it and by layers' outputs.

    Args:
        model: the float model.
        names: the names of the layers.
        x_t: the state of float sampling, (B, C, H, W).
        step: from x_t to x_s.
        adjoint: the gradients by x_s and by the predictions of x_0 that the step hands on, none of those that nothing
            reads, each (B, C, H, W).
        condition: of the B samples.

    Raises:
        ValueError: a layer is called twice.
    """
    calls: dict[str, LayerCall] = {}
    with torch.inference_mode(False), torch.enable_grad():
        x = x_t.clone().requires_grad_(True)
        with recording(model.network, names, calls):
            m = model.predict(x, step, None if condition is None else condition.cloned()).m
        # No gradient depends on the noise that is added, nor on the earlier predictions, in which a step is affine.
        behind = [step.mean(x, m, [torch.zeros_like(x)] * (len(step.c_0) - 1))]
        if adjoint.past:
            behind.append(step.predict_x_0(x, m))
        variables = [x, *(call.probe for call in calls.values())]
        outer = [adjoint.x.clone(), *(gradient.clone() for gradient in adjoint.past[:1])]
        state, *gradients = torch.autograd.grad(behind, variables, outer, allow_unused=True)
    # A layer that the output does not depend on has no gradient.
    zeros = (torch.zeros_like(call.probe) for call in calls.values())
    by_layer = (zero if gradient is None else gradient for gradient, zero in zip(gradients, zeros, strict=True))
    return Adjoint(State(state, _by_past(step, adjoint)), calls, dict(zip(calls, by_layer, strict=True)))


def _by_past(step: Step, adjoint: State) -> tuple[Tensor, ...]:
    """The gradients by the earlier predictions: through x_s, and through those that are handed on once more."""
    further = adjoint.past[1:]
    by_x_s = [c * adjoint.x for c in step.c_0[1:]]
    return tuple(by + further[j] if j < len(further) else by for j, by in enumerate(by_x_s))


@dataclass(frozen=True)
class LayerChange:
    """The change of <v, x_0> by fewer bits in one layer, quantized alone and corrected as `Rescaled` corrects it.

    The input's grid is the step's own, and the output channels get back the mean and the deviation of the float
    layer's, so that the change is what correction leaves.

    Args:
        layer: the quantized layer, for its geometry.
        weight: the float layer's weight.
        call: the float layer's call.
        gradient: the gradient of <v, x_0> by the layer's output, (B, ...).
        images: B. A guided network has rows for them once or twice; a layer that is computed once for all, such as
            that of a time embedding, has one, and its change is that of all images together.
    """

    layer: QuantizedLayer
    weight: Tensor
    call: LayerCall
    gradient: Tensor
    images: int

    @cached_property
    def _target(self) -> Spread:
        return Spread.of(self.call.y, self.layer.channels)

    def of_input(self, quantizer: Quantizer) -> Tensor:
        """<g, e> of every sample, (B,) or (1,) of a layer computed once, of the input quantized by its own range.

        Args:
            quantizer: of the layer's inputs, which has observed nothing yet.
        """
        settings = self.layer.settings
        equalised = settings.equalised(self.call.x)
        quantizer.observe(equalised)
        quantizer.freeze()
        x_hat = settings.restored(quantizer.to(self.call.x.device)(equalised))
        return self._projection(self.layer.compute(x_hat, self.weight, self.layer.bias))

    def of_weight(self, weight: Tensor) -> Tensor:
        """<g, e> of every sample, (B,) or (1,) of a layer computed once, of another weight."""
        return self._projection(self.layer.compute(self.call.x, weight, self.layer.bias))

    def _projection(self, output: Tensor) -> Tensor:
        channels = self.layer.channels
        rescaling = Rescaling.between(Spread.of(output, channels), self._target)
        error = rescaling.of(output, channels) - self.call.y
        by_row = (self.gradient * error).flatten(1).sum(1, dtype=torch.float64)
        # Directions of different images are independent, so that a sum over images has the sum of their squares.
        return by_row.sum()[None] if len(by_row) % self.images else by_row.view(-1, self.images).sum(0)
