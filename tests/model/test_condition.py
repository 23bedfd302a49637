"""Conditions: rows of tensors that belong to samples."""

import pytest
import torch

from ptq_diffusion.model.condition import Condition, concatenated


def condition() -> Condition:
    generator = torch.Generator().manual_seed(0)
    return Condition(
        labels=torch.tensor([3, 1, 4]),
        embeddings=torch.randn(3, 2, 5, generator=generator),
        mask=torch.tensor([[1, 1], [1, 0], [1, 1]]),
        scale=torch.tensor([1.0, 2.0, 3.0]),
    )


def equal(first: Condition, second: Condition) -> bool:
    ours, theirs = first.tensors(), second.tensors()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_rows_belong_to_samples() -> None:
    whole = condition()
    assert len(whole) == 3
    assert equal(concatenated(whole.rows(slice(0, 1)), whole.rows(slice(1, 3))), whole)
    assert equal(whole.rows([2, 0]), whole.rows(torch.tensor([2, 0])))
    repeated = whole.rows([1]).expanded(4)
    assert equal(repeated, whole.rows([1, 1, 1, 1]))
    assert equal(Condition.of_tensors(whole.tensors()), whole)
    assert equal(whole.to("cpu"), whole)


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="one number of samples, got labels of 2, scale of 3"):
        Condition(labels=torch.tensor([1, 2]), scale=torch.ones(3))
    with pytest.raises(ValueError, match="use None for no condition"):
        Condition()
    with pytest.raises(ValueError, match="got one of 3"):
        condition().expanded(2)
    with pytest.raises(ValueError, match=r"embeddings of \[2, 5\] a row.* and labels of \[\] a row"):
        concatenated(condition(), Condition(labels=torch.tensor([1])))
    with pytest.raises(ValueError, match="got prompt"):
        Condition.of_tensors({"prompt": torch.ones(1)})
