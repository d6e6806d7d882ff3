"""Memory that this process frees stays with it, to be used again.

Steps of training free and ask again for hundreds of megabytes. Where the C library hands each block back, the kernel
clears every page anew, which on a CPU may take a sixth of the time. Only for processes of our own that go over batches
of one size: whoever imports robench keeps the allocator they chose, and batches of many sizes leave holes that add up.

Not here: memory of a GPU, which torch keeps by itself.
"""

import ctypes
import sys

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Keep what is freed until the process ends; whether this C library can (glibc).

    References:
      mallopt(3): trimming at -1 never happens, and without blocks of their own all come from the heap.
    """
    if not sys.platform.startswith("linux"):
        return False
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    return set_option is not None and all(
        set_option(option, value) for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1))
    )
