"""The files of llama.cpp's `llama-perplexity --kl-divergence-base`, read and written.

    "_logits_"  n_ctx: i32  n_vocab: i32  n_chunk: i32  tokens: i32 [n_chunk, n_ctx]
    for each chunk, for each position from n_ctx / 2 to n_ctx − 2: one row of 2·⌈n_vocab / 2⌉ + 4 uint16:
        scale: f32, min_log_prob: f32, then n_vocab codes (and one of padding where n_vocab is odd)

log p = scale · code + min_log_prob, little-endian. The tool clips logits at 16 below the largest before it rounds to
65,536 steps, so a value read back is off by up to 1.2e-4 nats, and all that is improbable is equally so.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import UsageError
from crossval.metrics import Float32, Float64

MAGIC = b"_logits_"
#: Logits further below the largest are stored as if they were this far.
CLIP = np.float32(16.0)
_STEPS = np.float32(65535.0)
_HEADER = struct.Struct("<8siii")
_LARGEST = 1 << 24  # of a context, a vocabulary or a number of chunks: more is a damaged header


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the file begins with.

    Attributes:
        n_ctx: Tokens of a chunk.
        n_vocab: Width of a row.
        tokens: [n_chunk, n_ctx] i32, as the text has them; where the model wants BOS, the first of a chunk is
            evaluated as BOS all the same.
    """

    n_ctx: int
    n_vocab: int
    tokens: NDArray[np.int32]

    @property
    def n_rows(self) -> int:
        """Scored positions of a chunk: its second half, without the last token."""
        return self.n_ctx - 1 - self.n_ctx // 2

    @property
    def row_bytes(self) -> int:
        """Size of one row."""
        return 2 * (2 * ((self.n_vocab + 1) // 2) + 4)


def scored(header: Header, chunk: int) -> tuple[int, ...]:
    """The tokens that the rows of a chunk predict."""
    first = header.n_ctx // 2
    return tuple(int(i) for i in header.tokens[chunk, first + 1 : first + 1 + header.n_rows])


def encode(logits: Float32) -> NDArray[np.uint16]:
    """Rows [n, n_vocab] as the tool stores them, [n, 2·⌈n_vocab / 2⌉ + 4], computed in float32 as it does."""
    rows = np.ascontiguousarray(logits, np.float32)
    largest = rows.max(axis=1, keepdims=True)
    smallest = np.maximum(rows.min(axis=1, keepdims=True), largest - CLIP)
    # ggml's tool sums e^x in float64 over float32 terms and takes the float32 logarithm
    total = np.exp(rows - largest).sum(axis=1, keepdims=True, dtype=np.float64)
    log_sum = np.log(total).astype(np.float32)
    scale = (largest - smallest) / _STEPS
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.rint((np.float32(1) / scale) * (rows - smallest))
    codes = np.where((rows > smallest) & (scale > 0), codes, 0.0)
    packed = np.zeros((len(rows), 2 * ((rows.shape[1] + 1) // 2) + 4), "<u2")
    packed[:, :4] = np.ascontiguousarray(np.hstack((scale, smallest - largest - log_sum)), "<f4").view("<u2")
    packed[:, 4 : 4 + rows.shape[1]] = codes
    return packed


def decode(packed: NDArray[np.uint16], n_vocab: int) -> Float64:
    """Log-probabilities [n, n_vocab] of stored rows, float32 arithmetic widened to float64."""
    scale, smallest = np.ascontiguousarray(packed[:, :4]).view("<f4").T
    codes = packed[:, 4 : 4 + n_vocab].astype(np.float32)
    return np.asarray(scale[:, None] * codes + smallest[:, None], np.float64)


class Writer:
    """Writes a file, chunk by chunk; it is whole when the block ends without an error.

    Args:
        path: Where.
        tokens: [n_chunk, n_ctx].
        n_vocab: Width of the logits.
    """

    def __init__(self, path: Path, tokens: NDArray[np.int32], n_vocab: int) -> None:
        self.header = Header(n_ctx=tokens.shape[1], n_vocab=n_vocab, tokens=np.asarray(tokens, np.int32))
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        self._file: BinaryIO | None = None
        self._written = 0

    def __enter__(self) -> Writer:
        try:
            self._file = self._part.open("wb")
        except OSError as error:
            raise UsageError(f"cannot be written ({error.strerror})", where=self._path) from error
        h = self.header
        self._file.write(_HEADER.pack(MAGIC, h.n_ctx, h.n_vocab, len(h.tokens)))
        self._file.write(np.ascontiguousarray(h.tokens, "<i4").data)
        return self

    def add(self, logits: Float32) -> None:
        """The scored rows of the next chunk, [n_rows, n_vocab]. Raises ValueError for other shapes."""
        if logits.shape != (self.header.n_rows, self.header.n_vocab):
            raise ValueError(f"rows of shape {logits.shape}, not {(self.header.n_rows, self.header.n_vocab)}")
        assert self._file is not None
        self._file.write(encode(logits).data)
        self._written += 1

    def __exit__(self, kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        assert self._file is not None
        self._file.close()
        if kind is not None or self._written != len(self.header.tokens):
            self._part.unlink()
            if kind is None:
                raise ValueError(f"{self._written} chunks were added, {len(self.header.tokens)} announced")
            return
        self._part.replace(self._path)


def read_header(path: Path) -> Header:
    """Header and tokens of a file.

    Raises:
        UsageError: It is no such file, or has not the size that its header gives.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_HEADER.size)
            if len(raw) < _HEADER.size or not raw.startswith(MAGIC):
                raise _refused(path, "it does not begin with _logits_")
            _, n_ctx, n_vocab, n_chunk = _HEADER.unpack(raw)
            if not all(0 < n <= _LARGEST for n in (n_ctx, n_vocab, n_chunk)) or n_ctx < 4:
                raise _refused(path, f"{n_chunk} chunks of {n_ctx} tokens from a vocabulary of {n_vocab}")
            size = path.stat().st_size
            rows = n_chunk * (n_ctx - 1 - n_ctx // 2) * 2 * (2 * ((n_vocab + 1) // 2) + 4)
            due = _HEADER.size + 4 * n_ctx * n_chunk + rows
            if size != due:
                raise _refused(path, f"it has {size} bytes, its header makes {due}")
            tokens = np.frombuffer(file.read(4 * n_ctx * n_chunk), "<i4").reshape(n_chunk, n_ctx)
    except OSError as error:
        raise UsageError(f"cannot be read ({error.strerror})", where=path) from error
    if tokens.min() < 0 or tokens.max() >= n_vocab:
        raise _refused(path, "it holds tokens outside its vocabulary")
    return Header(n_ctx=n_ctx, n_vocab=n_vocab, tokens=tokens.astype(np.int32))


def chunks(path: Path, header: Header) -> Iterator[Float64]:
    """Log-probabilities of each chunk, [n_rows, n_vocab], one chunk in memory at a time."""
    width = header.row_bytes // 2
    with path.open("rb") as file:
        file.seek(_HEADER.size + 4 * header.tokens.size)
        for _ in header.tokens:
            raw = file.read(header.n_rows * header.row_bytes)
            yield decode(np.frombuffer(raw, "<u2").reshape(header.n_rows, width), header.n_vocab)


def _refused(path: Path, why: str) -> UsageError:
    return UsageError(
        f"is no file of log-probabilities: {why}",
        where=path,
        remedy="write one with `python -m crossval quality --save-base`, or llama-perplexity --kl-divergence-base",
    )
