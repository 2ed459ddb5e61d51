"""The ledger: which kernels ran, on which weights, how often. The dispatcher writes it; receipts are read from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from threading import Lock
from typing import Literal

Role = Literal["projection", "head"]


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelUse:
    """What identifies a line of the ledger.

    Attributes:
        kernel: Kernel id, `<device>.<kernel>.<activation>`.
        role: One of the seven projections of a layer, or the output head.
        weight_type: Type name in the file (`I2_S`, `TQ2_0`, `F16`, …).
        isa: Instruction set it was compiled for.
    """

    kernel: str
    role: Role
    weight_type: str
    isa: str


@dataclass(slots=True)
class Tally:
    """Calls, output rows (matrix rows × tokens) and weight bytes read (once a call)."""

    calls: int = 0
    rows: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Ledger:
    """Tallies by kernel use, and how many forward passes, tokens and logit rows they served."""

    passes: int = 0
    tokens: int = 0
    head_rows: int = 0
    _tallies: dict[KernelUse, Tally] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)

    def add(self, use: KernelUse, *, rows: int, n_bytes: int, calls: int = 1) -> None:
        """Count kernel calls, their rows and bytes taken together."""
        with self._lock:
            tally = self._tallies.setdefault(use, Tally())
            tally.calls += calls
            tally.rows += rows
            tally.bytes += n_bytes

    def add_pass(self, *, tokens: int, head_rows: int) -> None:
        """Count one forward pass."""
        with self._lock:
            self.passes += 1
            self.tokens += tokens
            self.head_rows += head_rows

    def snapshot(self) -> dict[KernelUse, tuple[int, int, int]]:
        """Calls, rows and bytes so far."""
        with self._lock:
            return {use: (tally.calls, tally.rows, tally.bytes) for use, tally in self._tallies.items()}

    def since(self, before: Mapping[KernelUse, tuple[int, int, int]]) -> dict[KernelUse, tuple[int, int, int]]:
        """What was added after a snapshot."""
        added = {}
        for use, (calls, rows, n_bytes) in self.snapshot().items():
            then = before.get(use, (0, 0, 0))
            if calls > then[0]:
                added[use] = calls - then[0], rows - then[1], n_bytes - then[2]
        return added

    def __iter__(self) -> Iterator[tuple[KernelUse, Tally]]:
        return iter(sorted(self._tallies.items(), key=lambda item: (item[0].role, item[0].kernel, item[0].weight_type)))
