"""Codes come back as they were, in no byte more than they need."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_diffusion.numeric.packing import pack, packed_size, unpack

BITS = range(2, 9)
every_bits = pytest.mark.parametrize("bits", BITS)


@st.composite
def codes(draw):
    bits = draw(st.sampled_from(BITS))
    values = draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))
    return bits, values


def by_hand(values, bits):
    """One whole number of arbitrary length, cut into bytes."""
    number = sum(value << place * bits for place, value in enumerate(values))
    return list(number.to_bytes(-(-len(values) * bits // 8), "little"))


@settings(deadline=None, max_examples=200)
@given(codes())
def test_bytes_are_those_of_one_long_number_and_give_the_codes_back(drawn):
    bits, values = drawn
    packed = pack(torch.tensor(values, dtype=torch.int32), bits)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == by_hand(values, bits)
    assert unpack(packed, bits, (len(values),)).tolist() == values


@every_bits
def test_every_code_at_every_place_survives(bits):
    """All 64-bit words whose codes are equal, the largest code in the sign's place among them."""
    values = torch.arange(2**bits).repeat_interleave(11).reshape(-1, 11)
    assert torch.equal(unpack(pack(values, bits), bits, values.shape), values.int())


@every_bits
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_shape_order_and_dtype(bits, dtype):
    values = torch.randint(0, 2**bits, (3, 5, 2), generator=torch.Generator().manual_seed(bits)).to(dtype)
    back = unpack(pack(values, bits), bits, (3, 5, 2))
    assert back.dtype == torch.int32 and torch.equal(back, values.int())
    turned = values.transpose(0, 2)
    assert torch.equal(unpack(pack(turned, bits), bits, turned.shape), turned.int())


def test_density():
    """Eight codes of 3 bits and four of 6 bits fill 3 bytes."""
    cases = [(8, 3, 3), (4, 6, 3), (4, 2, 1), (2, 4, 1), (3, 4, 2), (5, 8, 5), (1, 5, 1), (0, 7, 0)]
    for count, bits, size in cases:
        packed = pack(torch.zeros(count, dtype=torch.int32), bits)
        assert packed.numel() == packed_size(count, bits) == size


@every_bits
def test_codes_that_do_not_fit_are_refused(bits):
    for value in (-1, 2**bits):
        with pytest.raises(ValueError, match=f"expected codes of {bits} bits, 0 to {2**bits - 1}"):
            pack(torch.tensor([0, value]), bits)


@pytest.mark.parametrize("bits", [0, 1, 9, 32])
def test_other_bits_are_refused(bits):
    for call in (lambda: pack(torch.tensor([0]), bits), lambda: unpack(torch.zeros(1).byte(), bits, (1,))):
        with pytest.raises(ValueError, match=f"expected codes of 2 to 8 bits, got {bits}"):
            call()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool])
def test_numbers_that_are_no_integers_are_refused(dtype):
    with pytest.raises(ValueError, match="integer dtype"):
        pack(torch.zeros(2, dtype=dtype), 4)


@pytest.mark.parametrize(
    "packed", [torch.zeros(2).byte(), torch.zeros(4).byte(), torch.zeros(3), torch.zeros(3, 1).byte()]
)
def test_other_bytes_are_refused(packed):
    with pytest.raises(ValueError, match=r"expected 3 bytes \(uint8\) for 8 codes of 3 bits"):
        unpack(packed, 3, (8,))
