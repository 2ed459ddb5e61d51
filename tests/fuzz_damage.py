"""Damage to valid files, as hypothesis draws it: bits, bytes, lengths, pieces cut out, doubled and put together."""

from __future__ import annotations

from functools import lru_cache

import fuzz_seeds
from hypothesis import strategies as st

NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    7,
    8,
    9,
    31,
    32,
    36,
    39,
    64,
    255,
    256,
    65_535,
    2**31,
    2**32 - 1,
    2**32,
    2**61,
    2**63,
    2**64 - 1,
)


@lru_cache
def _seeds(target: str) -> tuple[bytes, ...]:
    return tuple(fuzz_seeds.seeds(target).values())


@lru_cache
def _words(target: str) -> tuple[bytes, ...]:
    return tuple(fuzz_seeds.dictionary(target))


@st.composite
def damaged(draw: st.DrawFn, target: str = "model") -> bytes:
    """A valid file with one to eight faults."""
    raw = bytearray(draw(st.sampled_from(_seeds(target))))
    header = min(len(raw), 6000)  # most of what can be wrong is in front
    for _ in range(draw(st.integers(1, 8))):
        if not raw:
            break
        at = (
            draw(st.integers(0, min(header, len(raw)) - 1))
            if draw(st.booleans())
            else draw(st.integers(0, len(raw) - 1))
        )
        kind = draw(st.sampled_from(("bit", "byte", "u32", "u64", "word", "cut", "double", "end", "zeros")))
        if kind == "bit":
            raw[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "byte":
            raw[at] = draw(st.integers(0, 255))
        elif kind == "u32":
            raw[at : at + 4] = (draw(st.sampled_from(NUMBERS)) % 2**32).to_bytes(4, "little")
        elif kind == "u64":
            raw[at : at + 8] = draw(st.sampled_from(NUMBERS)).to_bytes(8, "little")
        elif kind == "word":
            word = draw(st.sampled_from(_words(target)))
            raw[at : at + len(word)] = word
        elif kind == "cut":
            del raw[at : at + draw(st.integers(1, 64))]
        elif kind == "double":
            raw[at:at] = raw[at : at + draw(st.integers(1, 64))]
        elif kind == "end":
            del raw[at:]
        else:
            n = draw(st.integers(1, 64))
            raw[at : at + n] = bytes(n)
    return bytes(raw)
