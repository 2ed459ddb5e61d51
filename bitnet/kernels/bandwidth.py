"""How fast threads can read memory: the wall that a decode step runs into."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from bitnet.kernels import dot, simd
from bitnet.kernels.compile import kernel

#: Bytes read in one trial: far beyond any cache, and a small part of a model.
SIZE = 1 << 29


@kernel
def read(words, data, begin, end, ahead, out):
    """Sum float32 [begin, end), a multiple of 64, in four accumulators; fetch `ahead` bytes before they are due."""
    a, b, c, d = simd.zero_f32(), simd.zero_f32(), simd.zero_f32(), simd.zero_f32()
    for i in range(begin, end, 64):
        if ahead:
            for line in range(0, 256, 64):
                dot.prefetch(data, 4 * i + line + ahead)
        a = simd.add_f32(a, simd.load(words, i))
        b = simd.add_f32(b, simd.load(words, i + 16))
        c = simd.add_f32(c, simd.load(words, i + 32))
        d = simd.add_f32(d, simd.load(words, i + 48))
    out[0] = simd.sum_f32(simd.add_f32(simd.add_f32(a, b), simd.add_f32(c, d)))


def measure(n_threads: int, *, trials: int = 5, size: int = SIZE) -> float:
    """Bytes a second that `n_threads` threads read together: the best of some trials, with and without fetching ahead.

    Args:
        n_threads: Threads.
        trials: Of each way.
        size: Bytes read in a trial, rounded down to whole shares.
    """
    share = size // (256 * n_threads) * 64  # float32 words of a thread
    words = np.zeros(share * n_threads, np.float32)
    words += 1  # commit the pages
    data, best = words.view(np.uint8), 0.0

    def run(thread: int, ahead: int) -> None:
        read(words, data, thread * share, (thread + 1) * share, ahead, np.empty(1, np.float32))

    run(0, 0)
    with ThreadPoolExecutor(n_threads) as pool:
        for trial in range(2 * trials):
            began = time.perf_counter()
            for done in [pool.submit(run, thread, 4096 * (trial % 2)) for thread in range(n_threads)]:
                done.result()
            best = max(best, words.nbytes / (time.perf_counter() - began))
    return best
