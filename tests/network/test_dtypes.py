"""Networks that are computed in half precision: float32 around them, integers and statistics as in float32."""

import pytest
import torch

from ptq_diffusion.model import DiffusersDenoiser, Guided
from ptq_diffusion.model.plan import LayerBits
from ptq_diffusion.network import load_quantized, save_quantized
from ptq_diffusion.network.rescaling import Rescaling, Spread
from ptq_diffusion.rounding.moments import columns
from tests.model.networks import NETWORKS, around, condition_of, denoiser_of, random_network, states_of
from tests.network.networks import quantized
from tests.network.test_families import STEPS, quantized_family

CASES = [(name, torch.bfloat16) for name in NETWORKS] + [("pixels", torch.float16)]


def halved(name, dtype):
    """The denoiser around a network of `NETWORKS` that is computed in another dtype."""
    model = around(random_network(name))
    return DiffusersDenoiser(
        torch.nn.Module.to(model.network, dtype), model.family, model.config, model.scheduler_config, None, dtype
    )


def relative(error, reference):
    return float(error.square().mean() / reference.square().mean()) ** 0.5


@pytest.mark.parametrize(("name", "dtype"), CASES)
def test_every_family_is_computed_in_half_precision_float_and_quantized(name, dtype, tmp_path):
    model, reference = halved(name, dtype), denoiser_of(name)
    x, condition = states_of(model), condition_of(model)
    quantized_model = quantized_family(model, condition)
    save_quantized(quantized_model, tmp_path)
    loaded = load_quantized(tmp_path)
    assert loaded.dtype is dtype and loaded.fingerprint() == quantized_model.fingerprint()
    exact = quantized_family(reference, condition)
    for step in STEPS:
        float_m = reference.predict(x, step, condition).m
        m = model.predict(x, step, condition).m
        assert m.dtype is torch.float32 and not torch.equal(m, float_m)
        assert relative(m - float_m, float_m) < 8 * torch.finfo(dtype).eps
        output = quantized_model.predict(x, step, condition)
        assert output.m.dtype is output.features.dtype is torch.float32
        # Half precision turns some roundings the other way, and adds no error of another size than theirs.
        error, expected = (relative(it - float_m, float_m) for it in (output.m, exact.predict(x, step, condition).m))
        assert expected / 2 < error < 2 * expected
        assert torch.equal(loaded.predict(x, step, condition).m, output.m)


def test_rescaled_layers_and_moments_are_of_float32():
    torch.manual_seed(0)
    output, target = torch.randn(8, 3, 40) * 3 + 2, torch.randn(8, 3, 40)
    half = output.bfloat16()
    assert Spread.of(half, 1).equals(Spread.of(half.float(), 1))
    rescaling = Rescaling.between(Spread.of(half, 1), Spread.of(target, 1))
    assert rescaling.of(half, 1).dtype is torch.bfloat16
    assert torch.equal(rescaling.of(half, 1), rescaling.of(half.float(), 1).bfloat16())
    linear = torch.nn.Linear(40, 2)
    assert columns(linear, half, 3, 0).dtype is torch.float32


def test_backends_of_integers_need_float32():
    half = quantized(halved("pixels", torch.bfloat16), LayerBits(8, 8))
    with pytest.raises(ValueError, match=r"float32 for backend=integer, got one in bfloat16; set model\.dtype=float32"):
        half.to_backend("integer")


def test_guidance_keeps_the_dtype():
    model = halved("classes", torch.bfloat16)
    condition = condition_of(model, 1)
    assert Guided(model, condition, 2.0, (0.0, 1.0)).dtype is torch.bfloat16
