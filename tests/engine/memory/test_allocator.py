"""Tensors that are freed and made again take no new pages from the system."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from ptq_diffusion.engine.memory.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        tensors = [torch.zeros({kilobytes}, 256) for _ in range(4)]
        del tensors
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

keep_freed_memory()
faults()
print(faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left as they are")
@pytest.mark.parametrize("kilobytes", [512, 16384])
def test_freed_memory_is_used_again(kilobytes):
    """With a hundredth of the pages that the tensors of one round have."""
    code = FAULTS.format(kilobytes=kilobytes)
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(ran.stdout) <= 4 * kilobytes / 4 / 100
