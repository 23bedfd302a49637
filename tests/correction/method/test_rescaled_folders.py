"""Rescaled layers in folders, and between the steps of another table."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ptq_diffusion.correction.fitted import COEFFICIENTS, CONFIG, FittedCorrection, StepCorrection
from ptq_diffusion.correction.noise.residual import Residual
from ptq_diffusion.correction.transfer import interpolated
from ptq_diffusion.network import InputGrid, Rescaling
from ptq_diffusion.sampler import DDIM
from tests.correction.pipelines import OURS, STEPS, fitted
from tests.correction.presets import RULED, SHIFTED

RESCALING = ("gain", "offset")


@pytest.mark.parametrize("name", ["rescaled_matched", SHIFTED, RULED])
def test_folders_keep_rescalings_bit_for_bit(name, pair, tmp_path):
    correction = fitted(name, DDIM(eta=1.0, **OURS).table(pair[0].scheduler_config), pair)
    correction.save(tmp_path)
    loaded = FittedCorrection.load(tmp_path)
    assert loaded.rescales and loaded.size == correction.size
    for own, again in zip(correction.corrections, loaded.corrections, strict=True):
        assert own.rescalings.keys() == again.rescalings.keys()
        shifted = {layer for layer, rescaling in own.rescalings.items() if rescaling.shift is not None}
        assert bool(shifted) == (name == SHIFTED)
        for layer, rescaling in own.rescalings.items():
            tensors, others = rescaling.tensors(), again.rescalings[layer].tensors()
            assert rescaling.input_grid and tensors.keys() == others.keys()
            assert all(torch.equal(tensor, others[field]) for field, tensor in tensors.items())
    assert not loaded.without_repairs().rescales


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("0/rescaling/conv_in/offset"),
        lambda tensors: tensors.update({"0/rescaling/conv_in/more": torch.zeros(1)}),
        lambda tensors: tensors.update({"0/rescaling/conv_in/gain": torch.ones(3)}),
        lambda tensors: tensors.update({"first/rescaling/conv_in/gain": torch.ones(8)}),
        lambda tensors: tensors.update({"0/rescaling/x": torch.ones(8)}),
        lambda tensors: tensors.update({"0/0/affine/k": torch.ones(())}),
        lambda tensors: tensors.update({f"{STEPS}/rescaling/conv_in/{name}": torch.ones(8) for name in RESCALING}),
        lambda tensors: tensors.update({f"-1/0/affine/{name}": torch.ones(()) for name in ("k", "bias")}),
        lambda tensors: tensors.pop("sigma"),
        lambda tensors: tensors.pop("report/k"),
        lambda tensors: tensors.update({"report/another": torch.ones(STEPS)}),
        lambda tensors: tensors.update({"residual/variance": torch.ones(STEPS + 1)}),
        lambda tensors: tensors.update(sigma=torch.ones(STEPS + 1)),
    ],
)
def test_a_folder_with_other_coefficients_is_refused(change, pair, tmp_path):
    fitted("rescaled", DDIM(eta=1.0, **OURS).table(pair[0].scheduler_config), pair).save(tmp_path)
    tensors = load_file(tmp_path / COEFFICIENTS)
    change(tensors)
    save_file(tensors, tmp_path / COEFFICIENTS)
    with pytest.raises(ValueError, match=r"coefficients that FittedCorrection.save wrote.*; fit or export it again"):
        FittedCorrection.load(tmp_path)


@pytest.mark.parametrize("version", [1, 3, None])
def test_another_format_is_refused(version, pair, tmp_path):
    """The first had no version."""
    fitted("none", DDIM(eta=1.0, **OURS).table(pair[0].scheduler_config), pair).save(tmp_path)
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config.pop("format") == 2
    if version:
        config["format"] = version
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"format is {version or 1}, this version reads 2\); fit or export it again"):
        FittedCorrection.load(tmp_path)


@pytest.mark.parametrize("file", [CONFIG, COEFFICIENTS])
def test_a_broken_file_is_refused(file, pair, tmp_path):
    fitted("rescaled", DDIM(eta=1.0, **OURS).table(pair[0].scheduler_config), pair).save(tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-9])
    with pytest.raises(ValueError, match=rf"FittedCorrection.save wrote in {tmp_path}.*; fit or export it again"):
        FittedCorrection.load(tmp_path)


def test_between_steps_a_rescaling_is_between_theirs_and_beside_none_half_of_itself(pair, tmp_path):
    scheduler = pair[0].scheduler_config
    few = DDIM(3, 0.0, {}).table(scheduler)
    report = fitted("none", few, pair).corrections[0].report
    grid = InputGrid(torch.tensor([0.1]), torch.tensor([3], dtype=torch.int32))
    layer = Rescaling(torch.tensor([3.0]), torch.tensor([1.0]), grid)
    left = Residual(0.0, absorbed=0)
    found = [StepCorrection((), 0.0, report, rescalings=own, residual=left) for own in ({"a": layer}, {}, {})]
    many = interpolated(FittedCorrection(few, found), few, DDIM(12, 0.0, {}).table(scheduler))
    gains = [float(own.rescalings["a"].gain) if own.rescalings else 1.0 for own in many.corrections]
    assert gains == sorted(gains, reverse=True) and gains[0] == 3 and gains[-1] == 1
    assert any(1 < gain < 3 for gain in gains)
    for own in many.corrections:
        if own.rescalings:
            assert float(own.rescalings["a"].offset) == pytest.approx((float(own.rescalings["a"].gain) - 1) / 2)
    many.save(tmp_path)  # the grid, which beside none is the one that there is, is the same tensor at several steps
    again = FittedCorrection.load(tmp_path).corrections
    assert [float(own.rescalings["a"].gain) if own.rescalings else 1.0 for own in again] == gains
