"""A correction may be fitted on another number of steps than the sampler takes, and on another guidance scale."""

import pytest
import torch
from safetensors.torch import load_file

from ptq_diffusion.correction import FittedCorrection
from ptq_diffusion.engine.store import Store

LABELS = ["condition=labels", "condition.source.no_class=3"]


@pytest.mark.parametrize("correction", ["ptqd", "matched"])
def test_what_is_fitted_on_other_steps_is_carried_to_the_samplers(shared, correction):
    words = ["goal=fit", f"correction={correction}", "noise.images=16", "micro_batch=16"]
    own, other = (shared(*words, f"noise.steps={steps}") for steps in ("null", "6"))
    assert FittedCorrection.load(other).steps == FittedCorrection.load(own).steps
    ours, others = (load_file(folder / "correction.safetensors") for folder in (own, other))
    assert {name.split("/")[0] for name in ours} == {name.split("/")[0] for name in others}
    assert not torch.equal(ours["report/k"], others["report/k"])


@pytest.mark.parametrize(("correction", "scale"), [("ptqd", 1), ("rescaled_matched", 2)])
def test_what_is_fitted_at_another_guidance_serves_the_same_network(shared, tiny_model_folder, correction, scale):
    model = [f"model.path={tiny_model_folder(classes=4)}", *LABELS, f"condition.guidance.scale={scale}"]
    words = [*model, f"correction={correction}", "noise.images=16", "images=1", "seeds=[0]", "sampler.steps=2"]
    words.append("micro_batch=16")

    def made(goal, guidance):
        return shared(*words, f"goal={goal}", f"noise.guidance={guidance}")

    fits = {guidance: (made("fit", guidance) / "correction.safetensors").read_bytes() for guidance in ("null", 1, 2)}
    assert fits["null"] == fits[scale] != fits[3 - scale]
    assert made("quantize", 3) == made("quantize", "null")
    drawn = {
        guidance: [path.read_bytes() for path in sorted((made("samples_corrected", guidance) / "chunks").iterdir())]
        for guidance in fits
    }
    assert drawn["null"] == drawn[scale] != drawn[3 - scale]


@pytest.mark.parametrize(
    ("correction", "scale", "fitted_at", "is_said"),
    [
        ("matched", 3, "null", True),
        (
            "auto ~correction.candidates.ptqd_gated ~correction.candidates.readout_matched "
            "~correction.candidates.rescaled_guided_matched",
            7,
            "null",
            True,
        ),
        ("matched", 3, 1.5, False),
        ("matched", 3, 3, True),
        ("rescaled_matched", 3, "null", True),
        ("matched", 2, "null", False),
        ("ptqd", 7, "null", False),
        ("rescaled", 7, "null", False),
        ("rescaled_guided_matched", 7, "null", False),
        ("auto", 7, "null", False),
    ],
)
def test_maps_fitted_to_amplified_noise_are_pointed_out_before_anything_is_made(
    make, tiny_model_folder, capsys, monkeypatch, correction, scale, fitted_at, is_said
):
    def begin(self, stage, cfg):
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "obtain", begin)
    model = [f"model.path={tiny_model_folder(classes=4)}", *LABELS, f"condition.guidance.scale={scale}"]
    images = ["noise.images=16", "trial.images=8"]
    with pytest.raises(KeyboardInterrupt):
        make(*model, *images, *f"correction={correction}".split(), f"noise.guidance={fitted_at}", "goal=fit")
    assert ("rescaled_guided_matched, or noise.guidance=1.5" in capsys.readouterr().out) == is_said


def test_a_map_of_the_image_is_fitted_at_the_guidance_of_the_images_alone(shared, tiny_model_folder):
    words = [f"model.path={tiny_model_folder(classes=4)}", *LABELS, "condition.guidance.scale=2", "goal=fit"]
    words += ["correction=matched", "correction.last_step=image", "noise.images=16"]
    shared(*words, "noise.guidance=2")
    with pytest.raises(ValueError, match="set last_step=output or noise.guidance=null"):
        shared(*words, "noise.guidance=1.5")
