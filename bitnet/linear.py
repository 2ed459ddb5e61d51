"""Matrix × activations: packed matrices, activations quantised on demand, and the choice of a kernel.

A matrix says how it is stored; `Numerics.activation` says how its input is rounded; `_multiply` is the one table that
turns the pair into a kernel, and every call of it is entered in the ledger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from threading import Lock
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.config import Numerics
from bitnet.errors import UsageError
from bitnet.kernels import instruction_set, kernels, row_tiles
from bitnet.kernels.ledger import KernelUse, Ledger, Role
from bitnet.kernels.row_tiles import Tiles
from bitnet.kernels.variants import PLAIN, Variant, choose
from bitnet.threads import Task, Threads

Float32 = NDArray[np.float32]

#: Below this many multiply-adds (about 60 µs) a second thread costs more than it saves.
_MIN_SHARE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Matrix:
    """What every stored matrix has.

    Attributes:
        name: Tensor name.
        type_name: Type in the file.
        n_row, n_col: Output and input width.
        n_bytes: Bytes read by one pass over it.
        scale: Multiplies the whole product (the file's tensor scale, 1 where it has none).
    """

    name: str
    type_name: str
    n_row: int
    n_col: int
    n_bytes: int
    scale: np.float32


@dataclass(frozen=True, slots=True, kw_only=True)
class TernaryMatrix(Matrix):
    """Trits, one scale a tensor, and block scales where the file has them.

    Attributes:
        tiles: The trits, in the order of the file until `Backend.pack`; columns are padded to whole groups of 128.
        block_scale: [n_row, n_col / 256] f32, or None where every one is 1.
    """

    tiles: Tiles
    block_scale: Float32 | None

    @property
    def codes(self) -> NDArray[np.uint8]:
        """Codes in I2_S order, [n_row, n_col / 4] uint8, unpacked at every call if they are not stored like that."""
        return row_tiles.unpack(self.tiles)


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Matrix(Matrix):
    """Q8_0: int8 [n_row, n_col], one scale for 32, [n_row, n_col / 32] f32."""

    data: NDArray[np.int8]
    block_scale: Float32


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseMatrix(Matrix):
    """Floats [n_row, n_col]: float32, binary16 as uint16, or bfloat16 as int16."""

    data: NDArray[Any]


#: Quantisers with one int8 scale a token.
INT8_TOKEN = ("int8_token", "int8_token_reciprocal", "int8_token_fused")


class Activations:
    """The input of one or more projections, [n_token, n] f32, in whatever forms they ask for."""

    def __init__(self, x: Float32, module: ModuleType) -> None:
        self.x = np.ascontiguousarray(x, np.float32)
        self._kernels = module
        self._padded: dict[int, Activations] = {}

    def padded(self, width: int) -> Activations:
        """The same, followed by zeros up to a width: what padded columns are multiplied with."""
        n_token, n = self.x.shape
        if n == width:
            return self
        if width not in self._padded:
            x = np.zeros((n_token, width), np.float32)
            x[:, :n] = self.x
            self._padded[width] = Activations(x, self._kernels)
        return self._padded[width]

    @cached_property
    def int8_token(self) -> tuple[NDArray[np.int8], Float32, NDArray[np.int32]]:
        """Codes [n_token, n], scales [n_token] (multiply to quantise), sums of codes [n_token]."""
        n_token = self.x.shape[0]
        out = np.empty(self.x.shape, np.int8), np.empty(n_token, np.float32), np.empty(n_token, np.int32)
        self._kernels.quantise_int8_token(self.x, *out)
        return out

    @cached_property
    def int8_token_reciprocal(self) -> tuple[NDArray[np.int8], Float32, NDArray[np.int32]]:
        """As `int8_token`, the scale 127 · (1 / absmax) rounded twice; for comparisons alone, so numpy will do."""
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.float32(127) * (np.float32(1) / np.maximum(self._largest, np.float32(1e-5)))
            return self._coded(self.x * scale[:, None], scale)

    @cached_property
    def int8_token_fused(self) -> tuple[NDArray[np.int8], Float32, NDArray[np.int32]]:
        """As `int8_token`, the products with the scale exact until they are integers; for comparisons alone."""
        with np.errstate(invalid="ignore"):
            scale = (127 / np.maximum(self._largest.astype(np.float64), 1e-5)).astype(np.float32)
            return self._coded(self.x.astype(np.float64) * scale[:, None], scale)

    @property
    def _largest(self) -> Float32:
        largest: Float32 = np.abs(self.x).max(axis=1, initial=0.0)
        return largest

    def _coded(
        self, scaled: NDArray[np.floating[Any]], scale: NDArray[np.floating[Any]]
    ) -> tuple[NDArray[np.int8], Float32, NDArray[np.int32]]:
        """Codes, scales and sums of what was scaled. A token that is not finite has a scale that is not."""
        finite = np.isfinite(self._largest)
        q = np.clip(np.where(finite[:, None], np.rint(scaled), 0), -128, 127).astype(np.int8)
        return q, np.where(finite, scale, np.nan).astype(np.float32), q.sum(axis=1, dtype=np.int32)

    def int8(self, how: str) -> tuple[NDArray[np.int8], Float32, NDArray[np.int32]]:
        """Codes, scales and sums of the int8 quantiser of that name."""
        if how == "int8_token":
            return self.int8_token
        return self.int8_token_reciprocal if how == "int8_token_reciprocal" else self.int8_token_fused

    @cached_property
    def q8_k(self) -> tuple[NDArray[np.int8], Float32, NDArray[np.int32]]:
        """Codes [n_token, n], scales and sums of codes [n_token, n / 256] (scales multiply to dequantise)."""
        blocks = (self.x.shape[0], self.x.shape[1] // 256)
        out = np.empty(self.x.shape, np.int8), np.empty(blocks, np.float32), np.empty(blocks, np.int32)
        self._kernels.quantise_q8_k(self.x, *out)
        return out

    @cached_property
    def q8_0(self) -> tuple[NDArray[np.int8], Float32]:
        """Codes [n_token, n], scales [n_token, n / 32] (multiply to dequantise)."""
        out = np.empty(self.x.shape, np.int8), np.empty((self.x.shape[0], self.x.shape[1] // 32), np.float32)
        self._kernels.quantise_q8_0(self.x, *out)
        return out

    def rounded(self, how: str) -> Float32:
        """The activations after a quantiser, as float32: what a float kernel multiplies."""
        if how == "none":
            return self.x
        if how == "f16":
            return round_f16(self.x).astype(np.float32)
        if how == "bf16":
            return round_bf16(self.x)
        if how in INT8_TOKEN:
            q, scale, _ = self.int8(how)
            return q.astype(np.float32) / scale[:, None]
        q, scale = self.q8_k[:2] if how == "q8_k" else self.q8_0
        width = self.x.shape[1] // scale.shape[1]
        with np.errstate(invalid="ignore"):  # a scale beyond binary16 is infinite
            return q.astype(np.float32) * np.repeat(scale, width, axis=1)


def round_f16(x: Float32) -> NDArray[np.float16]:
    """Float32 rounded to binary16 (half to even; beyond 65504 to infinity)."""
    with np.errstate(over="ignore"):
        return x.astype(np.float16)


def round_bf16(x: Float32) -> Float32:
    """Float32 rounded to bfloat16 (half to even; NaN stays NaN) and back."""
    bits = x.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isnan(x), x, rounded.view(np.float32)).astype(np.float32)


@dataclass(slots=True)
class Backend:
    """A device with its threads and its ledger: what every product runs on."""

    device: str
    n_threads: int
    chosen: Variant | None = None
    ledger: Ledger = field(default_factory=Ledger)
    arena: row_tiles.Arena = field(default_factory=row_tiles.Arena)
    _others: Threads = field(init=False)

    def __post_init__(self) -> None:
        self._others = Threads(max(1, self.n_threads - 1), "bitnet")

    @property
    def kernels(self) -> ModuleType:
        """The device's kernels."""
        return kernels(self.device)

    @property
    def variant(self) -> Variant:
        """How ternary matrices are stored and multiplied: what was chosen, else what suits the device and machine."""
        if self.chosen is None:
            self.chosen = choose() if self.device == "cpu" else PLAIN
        return self.chosen

    def pack(self, matrix: TernaryMatrix) -> TernaryMatrix:
        """A ternary matrix in the layout of this backend's kernels."""
        if matrix.tiles.layout == self.variant.layout:
            return matrix
        tiles = row_tiles.pack(matrix.codes, self.variant.layout, arena=self.arena)
        n_bytes = tiles.data.nbytes + (0 if matrix.block_scale is None else matrix.block_scale.nbytes)
        return replace(matrix, tiles=tiles, n_bytes=n_bytes)

    def activations(self, x: Float32) -> Activations:
        """The input of the projections that share it."""
        return Activations(x, self.kernels)

    def split(self, n: int, work: int, run: Callable[[int, int], None]) -> None:
        """Call `run(begin, end)` for parts of [0, n); `work` is the multiply-adds of all.

        A thread takes a share of what the others have left, so one that comes late, or whose core is slow, takes less.
        """
        least, lock, taken = max(1, n * _MIN_SHARE // max(1, work)), Lock(), 0

        def take(_thread: int) -> None:
            nonlocal taken
            while True:
                with lock:
                    begin = taken
                    end = taken = min(n, begin + max(least, (n - begin) // (2 * self.n_threads)))
                if begin == end:
                    return
                run(begin, end)

        if self.n_threads == 1 or work < 2 * _MIN_SHARE:
            run(0, n)
        else:
            self.share(work, take)

    def share(self, work: int, run: Callable[[int], None]) -> None:
        """Call `run(thread)` in as many threads as the `work` is worth; each takes of it what the others have left.

        A thread that has not begun when the first has found nothing more to do is not waited for.
        """
        n = max(1, min(self.n_threads, work // _MIN_SHARE))
        others: list[Task] = []
        try:
            for i in range(1, n):
                others.append(self._others.submit(partial(run, i)))  # noqa: PERF401  # also those before one that fails
            run(0)
        finally:
            for other in others:
                if not other.cancel():
                    other.result()

    def together(self, run: Callable[[int, int], None], give_up: Callable[[], None]) -> None:
        """Call `run(thread, n_threads)` in all threads at once.

        Args:
            run: Returns without a result once it is known that not all threads come.
            give_up: Makes that known. One may be missing: an interrupt reaches this thread before its own share, or the
                system starts no further one.

        Raises:
            ResourceLimitError: A thread cannot be started.
        """
        n = self.n_threads
        others: list[Task] = []
        try:
            for i in range(1, n):
                others.append(self._others.submit(partial(run, i, n)))  # noqa: PERF401  # as above
            run(0, n)
            for other in others:
                other.result()
        except BaseException:
            give_up()
            for other in others:
                other.wait()  # they write where the next pass does
            raise

    def product(self, matrix: Matrix, a: Activations, how: str, role: Role) -> Float32:
        """Matrix × activations, [n_token, n_row] f32.

        Args:
            matrix: The weights.
            a: Their input, [n_token, n_col].
            how: `Numerics.activation`, or the rounding of the head's input.
            role: For the ledger.
        """
        out = np.empty((a.x.shape[0], matrix.n_row), np.float32)
        if isinstance(matrix, TernaryMatrix):
            self._check(matrix)
        name, run = _multiply(self.kernels, self.variant, matrix, a, how, out)
        shares = len(matrix.tiles.data) if isinstance(matrix, TernaryMatrix) else matrix.n_row
        self.split(shares, out.size * matrix.n_col, run)
        if not isinstance(matrix, TernaryMatrix) and matrix.scale != 1:
            out *= matrix.scale
        use = KernelUse(
            kernel=f"{self.device}.{name}.{how}",
            role=role,
            weight_type=matrix.type_name,
            isa=self.variant.isa if isinstance(matrix, TernaryMatrix) else instruction_set(self.device),
        )
        self.ledger.add(use, rows=out.size, n_bytes=matrix.n_bytes)
        return out

    def integer_sums(self, matrix: TernaryMatrix, x: Float32) -> NDArray[np.int32]:
        """Exact sums of trits and int8-per-token activations, [n_token, n_row]."""
        self._check(matrix)
        q, _, total = self.activations(x).padded(matrix.tiles.width).int8_token
        out = np.empty((x.shape[0], matrix.n_row), np.int32)
        data, kernel = matrix.tiles.data, self.kernels.ternary_sums
        self.split(
            len(data),
            out.size * matrix.n_col,
            lambda begin, end: kernel(self.variant, data, q, total, begin, end, out),
        )
        return out

    def _check(self, matrix: TernaryMatrix) -> None:
        if matrix.tiles.layout != self.variant.layout:
            raise UsageError(
                f"is packed as {matrix.tiles.layout}, and the kernels {self.variant.id} read {self.variant.layout}",
                where=matrix.name,
                remedy="pack it with this backend",
            )


def _ones(matrix: TernaryMatrix) -> Float32:
    return np.ones((matrix.n_row, -(-matrix.n_col // 256)), np.float32)


def _multiply(
    k: ModuleType, v: Variant, m: Matrix, a: Activations, how: str, out: Float32
) -> tuple[str, Callable[[int, int], None]]:
    """The kernel for a matrix and an activation quantiser: its name, and the call over a range of rows (or tiles)."""
    if isinstance(m, TernaryMatrix):
        data, blocks = m.tiles.data, m.block_scale
        if how in INT8_TOKEN and blocks is None:
            q, scale, total = a.padded(m.tiles.width).int8(how)
            return "ternary_int8_token", lambda i, j: k.ternary_int8_token(v, data, q, total, scale, m.scale, i, j, out)
        weight_scale = _ones(m) if blocks is None else blocks
        if how == "q8_k" and v.layout in ("rows", "2-bit"):
            q, scale, total = a.padded(m.tiles.n_col).q8_k
            return "ternary_blocks", lambda i, j: k.ternary_blocks(
                v, data, weight_scale, q, total, scale, m.scale, i, j, out
            )
        x = a.padded(m.tiles.n_col).rounded(how)
        return "ternary_float", lambda i, j: k.ternary_float(v, data, weight_scale, x, m.scale, i, j, out)
    if isinstance(m, Int8Matrix):
        if how == "q8_0":
            q8, scale8 = a.q8_0
            return "q8_0_blocks", lambda i, j: k.q8_0_blocks(m.data, m.block_scale, q8, scale8, i, j, out)
        x = a.rounded(how)
        return "q8_0_float", lambda i, j: k.q8_0_float(m.data, m.block_scale, x, i, j, out)
    if isinstance(m, DenseMatrix):
        x = a.rounded(how)
        return "dense", lambda i, j: k.dense(m.data, x, i, j, out)
    raise UsageError(f"no kernel for a {type(m).__name__}", where=m.name)


def head_rounding(numerics: Numerics, n_token: int) -> str:
    """How the input of the output head is rounded in a pass of `n_token` tokens."""
    if numerics.head == "f16_decode":
        return "f16" if n_token == 1 else "none"
    return "none" if numerics.head == "f32" else numerics.head
