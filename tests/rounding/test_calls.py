"""Rows of the calls of a block: what grows with the batch is divided, all else stays whole, whatever its length."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from ptq_diffusion.rounding.block_errors import BlockErrors
from ptq_diffusion.rounding.calls import Call, CallFiles, leaves_of_rows

TABLE, SCALE = torch.rand(2, 4), torch.tensor(2.0)


class Sizes(list):
    """The steps and numbers of rows of calls."""

    @property
    def sizes(self):
        return self


class Block(nn.Module):
    def forward(self, x, scale, *, places, flat=None):
        return x * scale + places[0].sum() + (0 if flat is None else flat.sum())


@pytest.fixture
def block():
    return Block()


def asked(block, rows, **more):
    """A forward of so many states, whose table of places is as long as a batch of two."""
    return lambda: block(
        torch.rand(rows, 3), SCALE, places=(TABLE, TABLE), **{k: make(rows) for k, make in more.items()}
    )


def test_a_tensor_is_of_rows_if_it_grows_with_the_batch(block):
    of_rows = leaves_of_rows(block, asked(block, 1), asked(block, 2))
    assert of_rows == [True, False, False, False]
    x, chosen = torch.rand(2, 3), torch.tensor([1])
    some = Call.of(0, ((x, SCALE), {"places": (TABLE, TABLE)}), [x], of_rows).rows(chosen)
    (rows, scale), named = some.arguments
    assert torch.equal(rows, x[chosen]) and torch.equal(some.outputs[0], x[chosen]) and some.count == 1
    assert scale is SCALE and all(table is TABLE for table in named["places"])


def test_calls_of_files_are_compared_on_the_device_of_the_networks(tmp_path):
    block = Block()

    class Meta:
        device = torch.device("meta")
        quantized = SimpleNamespace(network=SimpleNamespace(get_submodule=lambda _: block), set_step=lambda _: None)
        call_errors, compared = BlockErrors.call_errors, BlockErrors.compared

    x = torch.rand(2, 3)
    with CallFiles.within(tmp_path / "calls") as calls:
        calls.append(Call.of(0, ((x, SCALE), {"places": (TABLE, 3)}), [x + 1], [True, False, False, False]))
        (call,) = calls
        assert BlockErrors.call_error(Meta(), SimpleNamespace(name="block"), call).device.type == "meta"
    moved = call.to("meta")
    assert moved.arguments[1]["places"][1] == 3 and moved.of_rows == call.of_rows and moved.i == call.i


def test_tensors_that_share_memory_are_written_each(tmp_path):
    """A block may return a tensor twice, a part of one beside it, or an argument as it is."""
    x = torch.rand(4, 3)
    outputs = [x + 1, x]
    with CallFiles.within(tmp_path / "calls") as calls:
        calls.append(Call.of(0, ((x, x[:2], x.T), {}), [*outputs, outputs[0], outputs[0][1:]], [True, False, False]))
        (call,) = calls
    (whole, part, turned), _ = call.arguments
    assert torch.equal(whole, x) and torch.equal(part, x[:2]) and torch.equal(turned, x.T)
    for output, expected in zip(call.outputs, [*outputs, outputs[0], outputs[0][1:]], strict=True):
        assert torch.equal(output, expected)


def test_rows_of_a_file_are_those_of_its_call_whatever_their_shape_and_type(tmp_path):
    images, whole = torch.rand(4, 3, 2, 5), torch.rand(3, 2).T
    tensors = [images, images.bfloat16(), torch.arange(4), images[:, 0, 0] > 0.5]
    leaves, of_rows = [*tensors, whole, SCALE, "text", None], [True] * len(tensors) + [False] * 4
    chosen = torch.tensor([2, 0])
    with CallFiles.within(tmp_path / "calls") as calls:
        calls.append(Call.of(1, (tuple(leaves), {}), [images, tensors[2]], of_rows[:-1] + [False]))
        for call, expected in ((calls[0], lambda leaf: leaf), (calls.rows(0, chosen), lambda leaf: leaf[chosen])):
            assert all(
                torch.equal(*pair) for pair in zip(call.outputs, map(expected, [images, tensors[2]]), strict=True)
            )
            assert all(
                torch.equal(*pair) for pair in zip(call.leaves, [*map(expected, tensors), whole, SCALE], strict=False)
            )
            assert call.arguments[0][6:] == ("text", None) and call.i == 1 and calls.sizes == [(1, 4)]
        file = next((tmp_path / "calls").iterdir())
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(ValueError, match=r"expected whole calls .* got a file that was cut"):
            calls[0]


def test_calls_join_where_all_tensors_are_of_rows_and_constants_are_the_same():
    x = torch.rand(3, 2)
    call, other = (Call.of(i, ((rows, 1.5), {}), [rows + 1], [True, False]) for i, rows in ((0, x[:2]), (1, x[2:])))
    assert call.joins(other)
    joined = Call.joined([call, other])
    assert torch.equal(joined.leaves[0], x) and torch.equal(joined.outputs[0], x + 1) and joined.leaves[1] == 1.5
    assert not call.joins(Call.of(1, ((x, 2.5), {}), [x], [True, False])), "another constant"
    table = Call.of(0, ((x, TABLE), {}), [x], [True, False])
    assert not table.joins(table), "a whole tensor has no rows to join"


@pytest.mark.parametrize("flat", [lambda rows: torch.rand(2 * rows), lambda rows: torch.rand(rows + 1)])
def test_a_tensor_that_grows_in_another_way_is_refused(block, flat):
    with pytest.raises(ValueError, match=r"a row for each row .* choose rounding=gptq"):
        leaves_of_rows(block, asked(block, 1, flat=flat), asked(block, 2, flat=flat))


def test_an_output_that_does_not_grow_is_refused():
    block = nn.Linear(3, 3)
    with pytest.raises(ValueError, match="for one and for two states"):
        leaves_of_rows(block, *[lambda: block(torch.rand(1, 3))] * 2)


def test_states_at_no_step_with_a_weight_are_refused():
    """Steps count by their weights; a set whose steps all have none leaves nothing to round by."""
    subject = SimpleNamespace(table=[0, 1], step_weights=torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert BlockErrors.shares(subject, Sizes([(1, 3)])).tolist() == [0.0, 1.0]
    with pytest.raises(ValueError, match="at a step that has a weight, got none"):
        BlockErrors.shares(subject, Sizes([(0, 3)]))
