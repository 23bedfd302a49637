"""A correction may be fitted on another number of steps than the sampler takes."""

import pytest
import torch
from safetensors.torch import load_file

from ptq_diffusion.correction import FittedCorrection


@pytest.mark.parametrize("correction", ["ptqd", "matched"])
def test_what_is_fitted_on_other_steps_is_carried_to_the_samplers(make, correction):
    words = ["goal=fit", f"correction={correction}", "noise.images=16"]
    own, other = (make(*words, f"noise.steps={steps}") for steps in ("null", "6"))
    assert FittedCorrection.load(other).steps == FittedCorrection.load(own).steps
    ours, others = (load_file(folder / "correction.safetensors") for folder in (own, other))
    assert {name.split("/")[0] for name in ours} == {name.split("/")[0] for name in others}
    assert not torch.equal(ours["report/k"], others["report/k"])
