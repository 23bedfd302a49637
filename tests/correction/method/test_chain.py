"""A chain is its links one behind the other."""

import pytest
import torch

from ptq_diffusion.correction import PTQD, Chain, Matched, PairedBatch, PathEvidence, PathPTQD, Regression, Rescaled
from ptq_diffusion.correction.evidence import PathBatch
from ptq_diffusion.correction.path_state import PathState
from tests.correction.batches import split
from tests.correction.filtered import OPTIONS, STEP, batches, method, planted
from tests.correction.pipelines import states
from tests.steps import at

REGRESSION, MATCHED = Regression(**OPTIONS), Matched("original", "float", None)
RESCALED = Rescaled(None, 64, "float")


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


@pytest.mark.parametrize("link", [REGRESSION, MATCHED], ids=lambda link: type(link).__name__)
def test_of_one_link_it_is_the_link(link):
    evidence = PathEvidence(batches(planted()))
    alone, chained = link.fit_step(evidence, STEP), Chain({"link": link}).fit_step(evidence, STEP)
    assert alone.repairs and chained.report == alone.report and chained.sigma == alone.sigma
    assert_same(chained.repairs, alone.repairs)


def test_every_link_sees_what_those_before_it_leave():
    """As if the network itself said what they make of its output."""
    paired, unpaired = split(batches(planted()), 100)
    whole = Chain({"a": REGRESSION, "b": MATCHED}).fit_step(PathEvidence(paired, unpaired), STEP)
    first = REGRESSION.fit_step(PathEvidence(paired, unpaired), STEP)

    def moved(batch):
        return batch.repaired(first.repairs), batch.x_t, batch.features, batch.float_m, batch.float_x_t

    behind = PathEvidence(
        [PairedBatch(b.first, *moved(b), b.m) for b in paired], [PathBatch(b.first, *moved(b)) for b in unpaired]
    )
    second = MATCHED.fit_step(behind, STEP)
    assert first.repairs and second.repairs
    assert_same(whole.repairs, first.repairs + second.repairs)
    assert whole.report.r2 != second.report.r2, "the report is of the whole chain"
    assert whole.report.r2_held_out == first.report.r2_held_out


def test_sigma_is_that_of_the_last_link():
    ruled = Matched("rule", "float", None)
    evidence = PathEvidence(batches(planted(noise=1.0)))
    whole = Chain({"a": REGRESSION, "b": ruled}).fit_step(evidence, STEP)
    assert whole.sigma != STEP.sigma and whole.report.sigma_used == whole.sigma
    first = REGRESSION.fit_step(evidence, STEP)
    assert whole.sigma == ruled.fit_step(evidence.repaired(first.repairs), STEP).sigma


def test_the_layers_of_the_first_link_are_rescaled(pair):
    chain = Chain({"rescaled": RESCALED, "matched": MATCHED})
    x = states(pair[0], 0)[:16]
    with torch.no_grad():
        (ours, m), (theirs, expected) = (
            one.rescalings(*pair, PathState(x, at(300.0), None)) for one in (chain, RESCALED)
        )
    assert ours and ours.keys() == theirs.keys() and torch.equal(m, expected)
    assert all(torch.equal(layer.gain, theirs[name].gain) for name, layer in ours.items())
    assert chain.images_for_rescaling == 64 and chain.reads is RESCALED.reads


REFUSED = {
    "no link": ({}, "at least one link, got none"),
    "moments": ({"ptqd": PTQD.of_terms()}, r"others in ptqd; leave it out with ~correction\.links\.ptqd"),
    "a chain": ({"a": REGRESSION, "b": Chain({"c": MATCHED})}, r"no chains themselves.* others in b"),
    "no correction": ({"a": "wiener"}, "others in a"),
    "another path": (
        {"a": REGRESSION, "b": Matched("original", "corrected", None)},
        "one value of path, got a float, b corr",
    ),
    "other images": (
        {name: Matched("original", "corrected", images) for name, images in (("a", 64), ("b", 256))},
        r"one value of images, got a 64, b 256; set correction\.links\.NAME\.images",
    ),
    "layers behind": ({"a": MATCHED, "b": RESCALED}, r"to rescale layers, got b behind a"),
    "layers twice": ({"a": RESCALED, "b": RESCALED}, r"to rescale layers, got b behind a"),
    "sigma' before the last": (
        {"a": method(variance="rule"), "b": MATCHED},
        r"set correction\.links\.a\.variance=orig",
    ),
    "PTQD's sigma' before the last": (
        {"a": PathPTQD(PTQD(), "float", None), "b": MATCHED},
        r"set correction\.links\.a\.terms\.variance=off",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_links_that_do_not_go_together_are_refused(name):
    links, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        Chain(links)


@pytest.mark.parametrize("images", [2, 9])
def test_what_a_link_refuses_the_chain_refuses_by_its_name(images):
    with pytest.raises(ValueError, match="of the link b: expected at least 10 images"):
        Chain({"a": REGRESSION, "b": MATCHED}).check_images(images, 2)
    with pytest.raises(ValueError, match="of the link b: .*variance=original"):
        Chain({"a": REGRESSION, "b": Matched("rule", "float", None)}).check_carried([STEP])


def test_two_links_of_one_class_are_not_carried_onto_another_table():
    """Where a step lacks one of two repairs of a kind, nothing says which of them it is."""
    Chain({"a": REGRESSION, "b": MATCHED}).check_carried([STEP])
    with pytest.raises(ValueError, match=r"links of different classes .*, got a, c of one; set noise\.steps=null"):
        Chain({"a": REGRESSION, "b": MATCHED, "c": REGRESSION}).check_carried([STEP])
