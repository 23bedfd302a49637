"""Processes that meet: whoever fails is known to all, and what one tells another comes as it was told."""

import pickle
import traceback
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from ptq_diffusion.engine.ranks import Ranks
from ptq_diffusion.engine.synchronisation import error_of, receiving, send_all, synchronised, text_in, text_of
from ptq_diffusion.stage.fit import fit_on_devices
from ptq_diffusion.stage.path_fit import PathFit
from tests.processes import AFRESH

TWO = SimpleNamespace(world_size=2)


def no_more():
    raise ValueError("no more")


def at_a_barrier(rank, failing):
    """What a process learns of a barrier at which some fail."""
    with synchronised(TWO):
        if rank in failing:
            no_more()
    return "all is done"


def what_cannot_be_sent(rank, _):
    """The error that the first process has of a value that the second cannot send."""
    if rank == 1:
        with pytest.raises((AttributeError, pickle.PicklingError), match="lambda"):
            send_all(0, lambda send: send("a", lambda: None))
        return "not sent"
    with pytest.raises(RuntimeError, match=r"rank 1 failed: .*lambda"), receiving(1) as received:
        received("a")
    return "told"


def in_talk(rank, _):
    """What the first process hears of the second, which fails, and then in another talk."""
    heard = []
    if rank == 1:
        with pytest.raises(ValueError, match="no more"):
            send_all(0, lambda send: (send("b", torch.ones(2)), send("a", 1), no_more()))
        send_all(0, lambda send: send("a", 2))
        return "sent"
    with pytest.raises(ValueError, match="no more"), receiving(1) as received:
        heard += [received("a"), received("b").sum().item()]
        received("c")
    with receiving(1) as received:
        heard.append(received("a"))
        with pytest.raises(RuntimeError, match="it does not send b"):
            received("b")
    return str(heard)


def in_rescaling(rank, failing):
    """A fit of layers shared by two processes, some of which fail before a value is sent or received."""
    correction = SimpleNamespace(
        is_divisible=True,
        send_targets=lambda model, quantized, state, send: send("a", 1),
        rescalings_received=lambda received, quantized, state: received("a"),
    )
    fit = SimpleNamespace(model=None, quantized=None, correction=correction)
    fit._first_states = lambda step, device: no_more() if rank in failing else None
    with synchronised(TWO):
        PathFit._rescale(fit, None, SimpleNamespace(world_size=2, global_rank=rank, device=None), None)


def in_building(rank, failing):
    """A fit along a path that some processes cannot build, and the workshop that each builds it with."""

    def build(shop):
        if rank in failing:
            no_more()
        return SimpleNamespace(fit=lambda fabric, *_: no_more() if shop != fabric.device else None)

    fabric = SimpleNamespace(world_size=2, is_global_zero=False, device=f"device {rank}")
    shop = SimpleNamespace(on=lambda device: device, runtime=SimpleNamespace(progress=False))
    fit_on_devices(fabric, build, None, None, shop, 1)
    return "all is fitted"


def in_a_task(rank, failing):
    """A function that the first of the processes of one command sends to all."""
    ranks = object.__new__(Ranks)
    ranks._fabric, ranks._group = SimpleNamespace(global_rank=rank, world_size=2), None
    ranks._do(lambda _: no_more() if rank in failing else None)
    return "all is done"


def outcome(task, argument, rank, folder):
    """Write what comes of a task in one of two connected processes."""
    dist.init_process_group("gloo", init_method=f"file://{folder / 'rendezvous'}", rank=rank, world_size=2)
    try:
        text = task(rank, argument)
    except (ValueError, RuntimeError) as error:
        text = f"{type(error).__name__}: {error}"
    (folder / f"{rank}.txt").write_text(text)
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("task", "argument", "expected"),
    [
        (at_a_barrier, (), ["all is done"] * 2),
        (at_a_barrier, (0,), ["ValueError: no more"] * 2),
        (at_a_barrier, (1,), ["ValueError: no more"] * 2),
        (at_a_barrier, (0, 1), ["ValueError: no more"] * 2),
        (in_talk, (), ["[1, 2.0, 2]", "sent"]),
        (in_rescaling, (0,), ["ValueError: no more"] * 2),
        (in_rescaling, (1,), ["ValueError: no more"] * 2),
        (in_building, (), ["all is fitted"] * 2),
        (in_building, (1,), ["ValueError: no more"] * 2),
        (in_a_task, (1,), ["ValueError: no more", "all is done"]),
        (what_cannot_be_sent, (), ["told", "not sent"]),
    ],
)
def test_both_processes_end_and_know_what_came_of_the_other(tmp_path, task, argument, expected):
    processes = [AFRESH.Process(target=outcome, args=(task, argument, rank, tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0], "none waits for the other in vain"
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == expected


@pytest.mark.parametrize(
    "error",
    [
        *(ValueError("no: more"), FloatingPointError("NaN\nand inf"), FileNotFoundError("no file"), MemoryError()),
        torch.OutOfMemoryError("2 TiB"),
    ],
    ids=repr,
)
def test_an_error_that_a_user_can_mend_is_of_the_same_kind_in_another_process(error):
    """Sent as a text, or known from its printed traceback alone."""
    try:
        try:
            no_more()
        finally:
            raise error
    except type(error):
        printed = traceback.format_exc()
    for text in (text_of(error), text_in(printed)):
        again = error_of(1, text)
        assert (type(again), str(again)) == (type(error), str(error))
    assert repr(error_of(1, text_in(printed.replace(type(error).__name__, "Own")))).startswith("RuntimeError('rank 1")


def test_a_process_that_is_alone_meets_nobody():
    alone = SimpleNamespace(world_size=1)
    with synchronised(alone):
        pass
    with pytest.raises(ValueError, match="no more"), synchronised(alone):
        no_more()
