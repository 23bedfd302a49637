"""Choices that do not fit are refused with a word on what to do, before anything is computed."""

import pytest
from PIL import Image

BAD = {
    "a release that needs DDIM": (["sampler=ddpm", "sampler.steps=3", "correction=ptqd_release"], "sampler=ddim"),
    "statistics of another feature space": (["feature=pixels", "reference=cifar10"], "goal=reference_statistics"),
    "channels that the extractor lacks": (
        ["feature=pixels", "feature.extractor.channels=5"],
        r"expected images \(N, 5",
    ),
    "one image": (["images=1", "seeds=[0]"], "at least 2 images"),
    "one image of each seed": (["images=1", "seeds=[0,1,2,3]"], "at least 2 images of each seed"),
    "more neighbours than images": (["judging.neighbours=9"], r"1\.\.8 for 10 images"),
    "no neighbours": (["judging.neighbours=0"], "draw more images or lower it"),
    "one replicate": (["judging.replicates=1"], "at least 2"),
    "a single seed that is no list": (["seeds=3"], r"seeds=\[0,1,2\]"),
    "half a seed": (["seeds=[0.5]"], "whole numbers"),
    "a seed twice": (["seeds=[1,1]"], "distinct"),
    "a channel for each activation": (["quantizer@quantizer.activation=affine_per_channel"], "affine_per_tensor"),
    "nine bits": (["bitwidth.inner.weight=9"], "2 to 8"),
    "no bits": (["bitwidth.inner.weight=null"], "2 to 8"),
    "a pattern without a layer": (["bitwidth.patterns=[{name:nowhere,weight:8,activation:8}]"], "matches none"),
    "eta above 1": (["sampler.eta=2"], r"eta in \[0, 1\]"),
    "an option of no scheduler": (["+sampler.scheduler.nothing=1"], "it has beta_end"),
    "a fit on steps that do not reach": (["noise.steps=1"], "raise noise.steps"),
    "a table of its own, carried": (["correction=stepbaq", "noise.steps=6"], "noise.steps=null"),
    "a direction of its own, carried": (["correction=ptqd_release", "noise.steps=6"], "correction.direction=original"),
    "a noise scale of its own, carried": (
        ["correction=readout", "correction.variance=rule", "noise.steps=6"],
        "correction.variance=original",
    ),
    "a noise scale of its own behind rescaled layers, carried": (
        [
            "correction=rescaled_readout_matched",
            "correction.links.matched.variance=rule",
            "noise.steps=6",
            "noise.images=16",
        ],
        "correction.variance=original",
    ),
    "a map of the image, carried": (
        ["correction=rescaled_matched", "correction.links.matched.last_step=image", "noise.steps=6", "noise.images=16"],
        "of the link matched: .*set last_step=output",
    ),
    "an export that asks twice": (["goal=export", "correction=qncd"], "got qncd; draw its images with"),
    "an export that may ask twice": (
        ["goal=export", "noise.images=16", "correction=auto", "+correction@correction.candidates.qncd=qncd"],
        "of qncd: expected.*got qncd; draw its images with.*leave out with ~correction.candidates.qncd",
    ),
    "a candidate that needs DDIM": (
        ["sampler=ddpm", "sampler.steps=3", "noise.images=16", "correction=auto"]
        + ["+correction@correction.candidates.stepbaq=stepbaq"],
        "of stepbaq: .*~correction.candidates.stepbaq",
    ),
    "eight bits, carried": (
        ["correction=readout_matched", "correction.links.readout.readout_bits=8", "noise.steps=6", "noise.images=16"],
        "correction.readout_bits=32",
    ),
    "too few images to rescale on": (["correction=rescaled", "noise.images=5"], "8 images.*raise noise.images"),
    "too few images for candidates": (
        ["correction=auto"],
        "of matched: .*14 images.*leave out with ~correction.candidates.matched ~.*rescaled_readout_matched",
    ),
    "nothing that follows a path": (
        ["correction=rescaled_matched", "+correction@correction.links.stepbaq=stepbaq"],
        "others in stepbaq; leave it out with ~correction.links.stepbaq",
    ),
    "no such term": (["correction.bias=both"], "'intercept', 'total' or 'off'"),
    "no such path": (["correction=matched", "correction.path=quantized"], "path of Matched to be 'float' or"),
    "no such goal": (["goal=nothing"], "samples_corrected"),
    "no such model": (["model.path=/nowhere"], "there is no folder /nowhere; check the path"),
    "no such reference": (["reference=statistics", "reference.path=/nowhere"], "goal=reference_statistics"),
    "a goal without its data": (["goal=reference_statistics"], "data=NAME"),
}


@pytest.mark.parametrize(("overrides", "remedy"), BAD.values(), ids=BAD)
def test_it_says_what_to_do_and_computes_nothing(make, tmp_path, overrides, remedy):
    with pytest.raises((ValueError, FileNotFoundError), match=remedy):
        make(*overrides)
    assert not list(tmp_path.glob("outputs/store/*/*"))


NEEDS_DDIM = ["sampler=ddpm", "sampler.steps=3", "correction=ptqd_release"]


@pytest.mark.parametrize("goal", ["fit", "samples_corrected", "evaluate"])
def test_a_goal_that_needs_the_correction_asks_it_before_anything_is_measured(make, tmp_path, goal):
    with pytest.raises(ValueError, match="sampler=ddim"):
        make(f"goal={goal}", *NEEDS_DDIM)
    assert not list(tmp_path.glob("outputs/store/*/*"))


def test_what_a_goal_does_not_depend_on_is_not_asked(make):
    make("goal=noise", *NEEDS_DDIM, "images=1", "feature=pixels", "feature.extractor.channels=5")


def test_a_layer_is_left_in_float_by_its_name(report):
    """As the YAML says it is written on the command line."""
    plain, _ = report()
    spared, _ = report('bitwidth.patterns=[{name:"*.conv_shortcut",weight:32,activation:32}]')
    assert spared["rows"][1]["bops_per_image"] > plain["rows"][1]["bops_per_image"]


def test_a_reference_folder_that_changed_is_another_reference(report, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(4):
        Image.new("RGB", (8, 8), (60 * i, 10, 10)).save(folder / f"{i}.png")
    overrides = "reference=folder", f"reference.path={folder}"
    first, _ = report(*overrides)
    (folder / "3.png").unlink()
    second, _ = report(*overrides)
    assert first["signatures"]["evaluate"] != second["signatures"]["evaluate"]
    assert first["rows"][0]["fid"] != second["rows"][0]["fid"]
