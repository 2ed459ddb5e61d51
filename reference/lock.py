"""A request, checked before anything is computed: ids that exist, and locks of a known tap and the right shape."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from reference.runner import FIRST_TAPS, LAST_TAPS, LAYER_TAPS, Float32, Request, TapKey, tap_order


def checked_lock(request: Request, n_layer: int, n_vocab: int) -> Mapping[TapKey, Float32]:
    """The locks of a request.

    Raises:
        ValueError: No ids, an id outside the vocabulary, a batch or continuation that makes no sense, or a lock
            of wrong name or shape.
    """
    n_token = len(request.ids)
    if not n_token:
        raise ValueError("a request needs at least one token id")
    if request.n_batch is not None and not 1 <= request.n_batch <= n_token:
        raise ValueError(f"n_batch is {request.n_batch}, not 1 … {n_token}")
    if request.n_greedy < 0:
        raise ValueError(f"n_greedy is {request.n_greedy}, not 0 or more")
    if bad := [i for i in request.ids if not 0 <= i < n_vocab]:
        raise ValueError(f"token id {bad[0]} is outside the vocabulary of {n_vocab}")
    lock = request.lock or {}
    known = set(tap_order(n_layer))
    for key, value in lock.items():
        if key not in known:
            raise ValueError(f"no tap {key}; names are {', '.join((*FIRST_TAPS, *LAYER_TAPS, *LAST_TAPS))}")
        if value.ndim != 2 or len(value) != n_token:
            raise ValueError(f"lock {key} has shape {value.shape}, not [{n_token}, width]")
    return lock


def locked_rows(value: Float32, key: TapKey, width: int, start: int, stop: int) -> Float32:
    """The rows of a lock that stand for tokens start … stop. Raises `ValueError` for another width."""
    if value.shape[-1] != width:
        raise ValueError(f"lock {key} has width {value.shape[-1]}, not {width}")
    return value[start:stop].astype(np.float32)
