"""How long stages take beside each other."""

from ptq_diffusion.command.effort import effort
from ptq_diffusion.engine.stage import Need
from ptq_diffusion.stage.fit import Fit
from tests.experiments import composed


def test_a_fit_of_moments_takes_next_to_none_of_the_time_of_one_along_a_path():
    moments, path, choice = (
        effort(Need(Fit, composed(f"correction={name}", "noise.images=64"))) for name in ("ptqd", "matched", "auto")
    )
    assert 0 < moments < path / 50 < choice
