"""Memory that this process frees stays with it, to be used again.

Steps of training free and ask again for hundreds of megabytes. Where the C library hands each block back, the kernel
clears every page anew, which on a CPU takes a noticeable part of the step (`docs/measure/heap.py`). Only for processes
of our own: whoever imports robench keeps the allocator they chose.

Not here: memory of a GPU, which torch keeps by itself.
"""

import ctypes
import sys

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST = 32 * 2**20
"""glibc takes no larger threshold: larger blocks go back to the kernel, as before."""


def keep_freed_memory() -> bool:
    """Keep what is freed until the process ends; whether this C library can (glibc).

    References:
      mallopt(3): blocks below the threshold come from the heap, whose end is never trimmed at -1.
    """
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    options = ((M_MMAP_THRESHOLD, LARGEST), (M_TRIM_THRESHOLD, -1))
    return set_option is not None and all(set_option(option, value) for option, value in options)
