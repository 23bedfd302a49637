"""Processes that torchrun or srun start with one command, on one node or several: the first runs it, all share work.

Only the first process, rank 0, holds locks, writes reports and prints. The others wait for functions that it sends to
all, such as a share of chunks of samples, whose files lie in a folder that all nodes see. Functions are pickled to be
sent, between processes of one user and one command alone.
"""

import atexit
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from lightning import Fabric
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.strategies.ddp import DDPStrategy

from ptq_diffusion.engine.synchronisation import error_of, text_of

PATIENCE = timedelta(days=1)
"""The longest time that processes wait for each other within a task, or for one that has not come yet."""
TASK_TIMEOUT = timedelta(days=365)
"""The longest time that a process waits for the next function: a stage that is not shared may take days."""
Value = TypeVar("Value")
Task = Callable[[Fabric], None]


class Ranks:
    """The processes of one command, connected.

    Args:
        accelerator: Lightning's word for the device type.
        nodes: how many.
        devices: processes of each node.
    """

    def __init__(self, accelerator: str, nodes: int, devices: int) -> None:
        # Objects are exchanged and no tensors, for which gloo serves on every device.
        strategy = DDPStrategy(process_group_backend="gloo", timeout=PATIENCE)
        self._fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=strategy)
        is_new = not dist.is_initialized()
        self._fabric.launch()
        # A process that ends while the threads of its group still run is aborted (SIGABRT) once in a few times.
        # Lightning ends groups of NCCL at exit and none of gloo; the next job of a sweep here uses the same group.
        if is_new:
            atexit.register(dist.destroy_process_group)
        self._group = dist.new_group(backend="gloo", timeout=TASK_TIMEOUT)

    @classmethod
    def found(cls, accelerator: str) -> "Ranks | None":
        """The ranks that the environment variables describe, connected now; None of a process that was started alone.

        Slurm's first node is the address of all, and the end of the job's number their port, unless MASTER_ADDR and
        MASTER_PORT say otherwise.

        Raises:
            ValueError: see `_of_slurm`.
        """
        if TorchElasticEnvironment.detect():
            processes, devices = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
            nodes = processes // devices
        elif SLURMEnvironment.detect():
            nodes, devices = _of_slurm(int(os.environ["SLURM_NTASKS"]))
        else:
            return None
        return cls(accelerator, nodes, devices) if nodes * devices > 1 else None

    @property
    def is_first(self) -> bool:
        """Whether this process is rank 0, which runs the command."""
        return self._fabric.global_rank == 0

    @property
    def count(self) -> int:
        """The number of processes."""
        return self._fabric.world_size

    def agree(self, facts: Mapping[str, object]) -> None:
        """Check that all processes have the same facts; only the first raises, so that it alone reports the error.

        Args:
            facts: by name, what is to be the same in all processes.

        Raises:
            ValueError: in the first process: another says otherwise; the message names the first difference.
        """
        everyone = self._gathered(dict(facts))
        if not self.is_first:
            return
        for rank, others in enumerate(everyone):
            for name in [*facts, *(name for name in others if name not in facts)]:
                ours, theirs = facts.get(name, "nothing"), others.get(name, "nothing")
                if ours != theirs:
                    raise ValueError(
                        f"expected the same on all ranks, got {name} = {ours} on rank 0 and {theirs} on rank {rank}; "
                        "start the same command in the same environment on all nodes"
                    )

    def call(self, task: Task) -> None:
        """Let all processes do a task, and wait for all; for the first process alone.

        Raises:
            Exception: it failed in another process, see `error_of`. What it raises in this one passes through.
        """
        self._sent((task, None))
        self._do(task)

    def serve(self) -> object:
        """Run the tasks that the first process sends until it sends the end; returns the value that came with it."""
        while True:
            task, farewell = self._sent(None)
            if task is None:
                return farewell
            self._do(task)

    @contextmanager
    def leading(self) -> Iterator[list[object]]:
        """Within this context the other processes serve; they are dismissed with the last item of the list, if any."""
        results: list[object] = []
        try:
            yield results
        finally:
            self._sent((None, results[-1] if results else None))

    def _do(self, task: Task) -> None:
        error: Exception | None = None
        try:
            task(self._fabric)
        # Whoever fails must not leave the others waiting; the first process tells of it.
        except Exception as failure:
            error = failure
        errors = self._gathered(None if error is None else text_of(error))
        if self.is_first and error is not None:
            raise error
        if self.is_first and any(errors):
            raise next(error_of(rank, text) for rank, text in enumerate(errors) if text)

    def _gathered(self, value: Value) -> list[Value]:
        values: list[Value] = [value] * self._fabric.world_size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def _sent(self, parcel: tuple[Task | None, object] | None) -> tuple[Task | None, object]:
        """The parcel that the first process hands over."""
        parcels = [parcel]
        dist.broadcast_object_list(parcels, src=0, group=self._group)
        assert parcels[0] is not None
        return parcels[0]


def _of_slurm(processes: int) -> tuple[int, int]:
    """The number of nodes of a job of Slurm, and of processes on each.

    Raises:
        ValueError: srun was told a number of processes and not how many a node has, or nodes have not as many.
    """
    if processes == 1:
        return 1, 1
    remedy = "start with srun --nodes=N --ntasks-per-node=M"
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ValueError(
            f"expected srun to be told how many processes each node has, got --ntasks={processes} alone; {remedy}"
        )
    nodes = int(os.environ["SLURM_NNODES"])
    if processes % nodes:
        raise ValueError(f"expected as many processes on every node, got {processes} on {nodes}; {remedy}")
    return nodes, processes // nodes
