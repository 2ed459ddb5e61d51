"""How fast this machine reads memory, as a yardstick for kernels that do little else.

Decoding reads every weight once a token. Its share of what the memory gives says how much there is left to gain.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

#: Bytes each thread reads in one repetition: several times a core's share of any last-level cache.
BYTES = 64 * 2**20
#: The fastest of these is quoted: the others met some other work of the machine.
REPEATS = 5


def read_bandwidth(n_threads: int) -> float:
    """Bytes per second that so many threads read from memory together; numpy sums without holding Python's lock."""
    blocks = [np.ones(BYTES // 8, np.int64) for _ in range(n_threads)]
    best = float("inf")
    with ThreadPoolExecutor(n_threads) as pool:
        for _ in range(REPEATS):
            began = time.perf_counter()
            list(pool.map(np.sum, blocks))
            best = min(best, time.perf_counter() - began)
    return n_threads * BYTES / best
