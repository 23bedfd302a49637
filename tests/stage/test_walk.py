"""The walk asks the float network about as many images as the correction says, each once a step."""

import pytest

from ptq_diffusion.model import UNetDenoiser
from ptq_diffusion.network import QuantizedLayer
from ptq_diffusion.stage.walk import Walk

STEPS, IMAGES = 2, 15


def rows_asked(make, monkeypatch, *words):
    """Of the float network along the corrected path."""
    asked, go, predict = [], Walk.go, UNetDenoiser.predict

    def recorded(denoiser, x_t, t):
        if not any(isinstance(module, QuantizedLayer) for module in denoiser.network.modules()):
            asked.append(len(x_t))
        return predict(denoiser, x_t, t)

    def going(walk, *words):
        with monkeypatch.context() as patch:
            patch.setattr(UNetDenoiser, "predict", recorded)
            return go(walk, *words)

    monkeypatch.setattr(Walk, "go", going)
    make("goal=fit", f"noise.images={IMAGES}", f"sampler.steps={STEPS}", *words)
    return asked


@pytest.mark.parametrize("micro_batch", [4, 16])
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["correction=matched", "correction.images=6"], 6),
        (["correction=readout_matched", "correction.images=64"], IMAGES),
        (["correction=rescaled_matched", "correction.images=9", "correction.then.images=6"], 9),
        (["correction=rescaled_matched", "correction.images=9", "correction.then.images=13"], 13),
        (["correction=rescaled", "correction.images=9"], 9),
        (["correction=tac"], IMAGES),
    ],
)
def test_the_float_network_is_asked_once_about_each_of_the_first_images(
    make, monkeypatch, words, expected, micro_batch
):
    assert sum(rows_asked(make, monkeypatch, *words, f"micro_batch={micro_batch}")) == STEPS * expected


@pytest.mark.parametrize("correction", ["wiener", "readout"])
def test_along_float_sampling_it_is_not_asked_again(make, monkeypatch, correction):
    assert rows_asked(make, monkeypatch, f"correction={correction}", "correction.path=float") == []
