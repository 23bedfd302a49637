"""Bits from the command line that are refused before anything is computed."""

import pytest

BUDGET = ["bitwidth=budget", "bitwidth.saving=20", "bitwidth.activations=[3,8]", "sensitivity.images=6"]


REFUSED = {
    "a budget below the cheapest plan": ([*BUDGET, "bitwidth.saving=500"], "saving of at most .* lower saving"),
    "bytes below the cheapest plan": (
        ["bitwidth=budget", "bitwidth.saving=null", "bitwidth.bytes=10"],
        "bytes of at least .* raise bytes",
    ),
    "no budget": (["bitwidth=budget", "bitwidth.saving=null"], "set saving"),
    "bits that no quantizer has": ([*BUDGET, "bitwidth.activations=[1,4]"], "2 to 8, which quantizers have, got 1"),
    "nine bits": ([*BUDGET, "bitwidth.weights=[4,9]"], "2 to 8, which quantizers have, got 9"),
    "bits out of order": ([*BUDGET, "bitwidth.weights=[8,4]"], "ascending order"),
    "a pattern that matches nothing": (
        [*BUDGET, "bitwidth.patterns=[{name:nowhere,weight:8,activation:8}]"],
        "'nowhere' to match a layer",
    ),
    "another table": ([*BUDGET, "noise.steps=6"], "set noise.steps=null"),
    "another table of a share": (["bitwidth=share", "noise.steps=6"], "got noise.steps=6 with share"),
    "another table of a measurement": (["goal=step_signal", "noise.steps=6"], "got noise.steps=6 with step_signal"),
    "more images than the float path has": (
        [*BUDGET, "sensitivity.images=8"],
        "sensitivity.images of at most noise.images, 7, .*got 8; raise noise.images",
    ),
    "the variance of one image": (
        [*BUDGET, "sensitivity.images=1"],
        "sensitivity.images of at least 2, .*got 1; .* sensitivity.distance=euclidean",
    ),
    "a distance that is none": ([*BUDGET, "sensitivity.distance=manhattan"], "'mahalanobis' or 'euclidean'"),
    "a first step above the last": (
        [*BUDGET, "sensitivity.first_step=1.5"],
        "first_step to be less than or equal to 1",
    ),
    "a first step of no weight": ([*BUDGET, "sensitivity.first_step=0"], "first_step to be greater than 0"),
    "no images": ([*BUDGET, "sensitivity.images=0"], "sensitivity.images to be greater than 0"),
    "integers of no offers": (
        ["goal=offers", "rounding=gptq"],
        "a budget that offers weights several bitwidths .* got bitwidth=w4a8",
    ),
    "integers of no rounding": (
        ["goal=offers", *BUDGET, "bitwidth.weights=[3,4]"],
        "and a rounding that reads something, got .* rounding=nearest; set .* rounding=gptq",
    ),
    "sensitivities of a policy without offers": (["goal=sensitivity"], "got w4a8; .* such as bitwidth=budget"),
    "a channel for each activation": (
        [*BUDGET, "quantizer@quantizer.activation=affine_per_channel"],
        "affine_per_tensor",
    ),
}


@pytest.mark.parametrize(("words", "remedy"), REFUSED.values(), ids=REFUSED)
def test_it_says_what_to_do_and_computes_nothing(make, tmp_path, words, remedy):
    with pytest.raises(ValueError, match=remedy) as refusal:
        make(*words)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.glob("outputs/store/*/*"))


def test_images_of_sensitivities_are_not_asked_of_policies_that_read_none(make):
    make("goal=plan", "bitwidth=w4a8", "sensitivity.images=5000")
    make("goal=plan", "bitwidth=random", "bitwidth.saving=20", "sensitivity.images=5000")
