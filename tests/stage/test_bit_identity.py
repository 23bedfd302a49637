"""A fit has the same bits wherever in memory its operands lie."""

from experiments.bit_identity.fits import several

NAMES = ["wiener_matched", "rescaled_readout_matched"]
"""All machineries: filters and the matching of spectra, rescaled layers and a readout by regression."""


def test_fits_that_are_forced_in_processes_of_different_environments_are_bit_identical(tiny_model_folder, tmp_path):
    words = [f"model.path={tiny_model_folder()}", f"outputs={tmp_path / 'outputs'}", "sampler.steps=2"]
    words.append("micro_batch=8")
    digests = several(NAMES, words, processes=3)
    assert {name: len(different) for name, different in digests.items()} == dict.fromkeys(NAMES, 1)
