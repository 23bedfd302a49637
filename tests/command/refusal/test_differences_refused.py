"""Differences between the rows of guidance, where rows are computed one by one, are refused before anything is made."""

import pytest

DIFFERENCES = "correction=rescaled +range_search@correction.differences=mse"
GUIDED = "condition=labels condition.source.no_class=3 condition.guidance.scale=2"
ONE_BY_ONE = "rows come in pairs, .*; set noise.guidance or .* to null, or correction.differences=null"
WORDS = {
    "images without guidance": (f"{GUIDED} {DIFFERENCES} condition.guidance.scale=1 noise.guidance=2", ONE_BY_ONE),
    "a chain": (
        f"{GUIDED} condition.guidance.scale=1 noise.guidance=2 correction=rescaled_guided_matched noise.images=16",
        "of the link rescaled: .* correction.links.rescaled.differences=null",
    ),
    "a choice": (
        f"{GUIDED} condition.guidance.scale=1 noise.guidance=2 correction=auto",
        "of rescaled_guided_matched: .* below correction.candidates.NAME of a choice; or leave out with ~correction.c",
    ),
    "another table, where guidance has an interval": (
        f"{GUIDED} {DIFFERENCES} noise.steps=3 condition.guidance.interval=[0,0.5]",
        ONE_BY_ONE,
    ),
    "no grid of a step": (
        f"{GUIDED} {DIFFERENCES} correction.range_search=null",
        "expected a range search beside that of differences",
    ),
    "grids of run time": (
        f"{GUIDED} {DIFFERENCES} quantizer@quantizer.activation=dynamic_per_token",
        "one static grid for their whole input, beside which differences have one, got Dynamic",
    ),
}


@pytest.mark.parametrize(("words", "remedy"), WORDS.values(), ids=WORDS)
def test_it_says_what_to_do_and_computes_nothing(make, tmp_path, tiny_model_folder, words, remedy):
    with pytest.raises(ValueError, match=remedy):
        make(*words.split(), f"model.path={tiny_model_folder(classes=4)}", "noise.images=16")
    assert not list(tmp_path.glob("outputs/store/*/*"))
