"""Measurements come back bit for bit, and refuse what they do not hold."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from ptq_diffusion.bitwidth import Sensitivity, StepSignal
from ptq_diffusion.model.plan import LayerBits
from tests.bitwidth.networks import LINE, sensitivity, signal

OFFERED = (LayerBits(4, 4), LayerBits(4, 32))
SIGNAL, SENSITIVITY = signal(OFFERED, 3), sensitivity(LINE, 3, [3, 4], [4, 8])
every_kind = pytest.mark.parametrize("value", [SIGNAL, SENSITIVITY], ids=["signal", "sensitivity"])


def changed(value, name, place, number):
    tensor = getattr(value, name).clone()
    tensor[place] = number
    return dataclasses.replace(value, **{name: tensor})


@every_kind
def test_what_is_saved_is_loaded_bit_for_bit(value, tmp_path):
    value.save(tmp_path / "file")
    back = type(value).load(tmp_path / "file")
    for field in dataclasses.fields(value):
        old, new = getattr(value, field.name), getattr(back, field.name)
        assert torch.equal(old, new) and new.dtype == torch.float64 if isinstance(old, torch.Tensor) else old == new


@every_kind
def test_another_network_or_table_is_refused(value):
    value.require(value.network, value.table)
    with pytest.raises(ValueError, match="of network other, got that of another network, n"):
        value.require("other", value.table)
    with pytest.raises(ValueError, match="of table other, got that of another table, t"):
        value.require(value.network, "other")


@every_kind
def test_other_files_are_refused(value, tmp_path):
    kind, path = type(value), tmp_path / "file"
    with pytest.raises(FileNotFoundError):
        kind.load(path)
    for content in (b"", b"no safetensors"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="got another file .*; measure again"):
            kind.load(path)
    save_file({"weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="got another file .*; measure again"):
        kind.load(path)
    other = SENSITIVITY if value is SIGNAL else SIGNAL
    other.save(path)
    with pytest.raises(
        ValueError, match="expected a measurement of .* of version 1 in .*, got .* of version 1; measure"
    ):
        kind.load(path)


def test_contents_that_do_not_fit_are_refused_with_the_file(tmp_path):
    from ptq_diffusion.bitwidth.evidence import Evidence, save_evidence

    path = tmp_path / "file"
    for fields in ({}, {"offered": [[9, 9]], "network": "n", "table": "t"}):
        save_evidence(path, Evidence.STEP_SNR, 1, {"signal": SIGNAL.signal, "error": SIGNAL.error}, fields)
        with pytest.raises(ValueError, match=f"expected a sound measurement in {path}.*; measure again"):
            StepSignal.load(path)
    save_evidence(path, Evidence.SENSITIVITY, 1, {"weight": SENSITIVITY.weight}, {"sites": []})
    with pytest.raises(ValueError, match=f"expected sound sensitivities in {path}.*; measure again"):
        Sensitivity.load(path)
    save_evidence(path, Evidence.SENSITIVITY, 2, {}, {})
    with pytest.raises(ValueError, match="of version 1 in .*, got sensitivity of version 2"):
        Sensitivity.load(path)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_a_sensitivity_that_is_not_finite_is_named(number):
    with pytest.raises(
        ValueError, match=r"a sensitivity that is not finite .* of a.emb at step 1 with 8 activation bits"
    ):
        changed(SENSITIVITY, "activation", (2, 1, 1), number)
    with pytest.raises(ValueError, match=r"a sensitivity that is not finite .* of in at step 2 with 3 weight bits"):
        changed(SENSITIVITY, "weight", (0, 2, 0), number)


@pytest.mark.parametrize(
    ("name", "number"),
    [("signal", float("nan")), ("signal", 0.0), ("signal", float("inf")), ("error", -1.0), ("error", float("nan"))],
)
def test_a_power_that_is_none_is_named(name, number):
    with pytest.raises(ValueError, match=f"power of the {name}, got .* at step 2 with W4A32; measure again"):
        changed(SIGNAL, name, (1, 2), number)


def test_shapes_must_fit():
    for value, change in (
        (SENSITIVITY, {"sites": ("a",)}),
        (SENSITIVITY, {"weight_bits": (4,)}),
        (SENSITIVITY, {"activation": SENSITIVITY.activation[:, :2]}),
        (SENSITIVITY, {"weight": SENSITIVITY.weight[0]}),
        (SIGNAL, {"offered": OFFERED[:1]}),
        (SIGNAL, {"error": SIGNAL.error[:, :2]}),
        (SIGNAL, {"offered": OFFERED[:1] * 2}),
    ):
        with pytest.raises(ValueError, match="expected"):
            dataclasses.replace(value, **change)


def test_a_selection_is_of_the_names_and_bits_in_their_order():
    weight, activation = SENSITIVITY.select(["out", "in"], 3, [4], [8, 4])
    assert torch.equal(weight, SENSITIVITY.weight[[4, 0]][:, :, [1]])
    assert torch.equal(activation, SENSITIVITY.activation[[4, 0]].flip(2))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ((["nowhere"], 3, [4], [4]), "site nowhere"),
        ((["in"], 3, [2], [4]), "weight bits 2"),
        ((["in"], 3, [4], [6]), "activation bits 6"),
        ((["in"], 4, [4], [4]), "of 4 steps, got those of 3"),
    ],
)
def test_what_was_not_measured_is_refused(asked, message):
    with pytest.raises(ValueError, match=f"{message}.*; measure again"):
        SENSITIVITY.select(*asked)


def test_both_ratios():
    power, norm = (SIGNAL.snr(OFFERED[::-1], ratio) for ratio in ("power", "norm"))
    assert power.tolist() == [[16.0] * 3, [1.0] * 3] and norm.tolist() == [[4.0] * 3, [1.0] * 3]
