"""The figure of a plan shows what the plan says, of weights as of activations."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from ptq_diffusion.model.plan import BitwidthPlan, LayerBits
from ptq_diffusion.report.plan_figure import plan_figure
from ptq_diffusion.report.stages import goal_stages
from ptq_diffusion.stage.evaluate import Evaluate
from ptq_diffusion.stage.step_signal import MeasureStepSignal
from tests.bitwidth.networks import LINE, table
from tests.experiments import composed

STEPS = 4


@pytest.mark.figures
@pytest.mark.parametrize("varied", [False, True])
def test_colours_are_the_bits_of_activations_and_beside_them_of_weights(varied, tmp_path, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **words: (figures.append(figure), save(figure, path)))
    bits = [LayerBits(2 + i if varied else 4, 8 - i) for i in range(STEPS)]
    plan = BitwidthPlan.by_step([{site.name: one for site in LINE.sites} for one in bits])
    plan_figure(plan, LINE, table(STEPS), None, tmp_path / "plan.png")
    (figure,) = figures
    images = [image.get_array() for image in figure.findobj(lambda part: hasattr(part, "get_array")) if image.axes]
    shown = [np.asarray(values) for values in images if np.ndim(values) == 2 and len(values) == len(LINE.sites)]
    activations = np.tile([8 - i for i in range(STEPS)], (len(LINE.sites), 1))
    weights = np.tile([2 + i for i in range(STEPS)] if varied else [4], (len(LINE.sites), 1))
    assert any(np.array_equal(values, activations) for values in shown)
    assert any(np.array_equal(values, weights) for values in shown)


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["bitwidth=w4a8"], False),
        (["bitwidth=share"], True),
        (["bitwidth=share", "step_signal.shown=false"], False),
        (["bitwidth=share", "noise.steps=2"], False),
        (["bitwidth=step_snr", "step_signal.shown=false"], True),
        (["bitwidth=share", "goal=evaluate"], False),
    ],
)
def test_the_figure_of_a_plan_shows_the_noise_of_several_bits(tiny, words, shown):
    assert (MeasureStepSignal in goal_stages(composed(*tiny, *words), Evaluate)) == shown
