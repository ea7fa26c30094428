"""Settings of this process that make training faster, made when a run or a worker starts.

None changes a result. All are measured in LOG.md. `PE_STOCK_PROCESS=1` leaves the process as it is.
"""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4


def tune() -> None:
    """Make them. Those in the environment reach this process only where torch is not loaded yet, its children always."""
    if os.environ.get("PE_STOCK_PROCESS") == "1":
        return
    # OpenMP threads that wait for each other spin. On a shared machine they spin while the thread they wait for is not
    # running, and training slows down many times over. After a short spin they now sleep.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Huge pages for large tensors (glibc 2.35 and later reads this when a process starts, so only workers profit).
    os.environ.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    if sys.platform == "linux":
        # glibc gives every large tensor fresh pages and returns them when it is freed: a Pythia-70M step paid for 120,000
        # page faults, a sixth of its time. Freed memory is kept for the next step instead.
        try:
            libc = ctypes.CDLL(None)
            libc.mallopt(_M_MMAP_MAX, 0)
            libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        except (OSError, AttributeError):
            pass  # another C library: nothing to set
