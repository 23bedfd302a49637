"""Options of glibc's allocator by which freed memory stays with the process."""

import ctypes
import platform

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""glibc's numbers for these options, from malloc.h."""
KEPT = 2**31 - 1
"""Bytes that stay, the most that `mallopt` takes."""
LARGEST = 2**25
"""Bytes of the largest blocks that stay, the most that `mallopt` takes; larger ones are the system's own mappings."""


def keep_freed_memory() -> None:
    """Ask glibc's allocator to keep up to 2 GiB of freed memory; other allocators are left as they are.

    Every forward of a network frees its activations and the next one asks for them again. By default glibc returns
    them in between, and the system clears each page before it lends it once more. A block of its own mapping, which is
    of 128 kB or more unless the process has freed a larger one before either option is set, is always returned: of a
    forward of 64 images that took more than half of the CPU time. The peak stays as it was. `man 3 mallopt` says more;
    the variables MALLOC_TRIM_THRESHOLD_ and MALLOC_MMAP_THRESHOLD_ do the same.
    """
    if platform.libc_ver()[0] == "glibc":
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_TRIM_THRESHOLD, KEPT)
        mallopt(M_MMAP_THRESHOLD, LARGEST)
