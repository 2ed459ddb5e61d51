"""What quantising a matrix costs, measured on kernels against the oracle, and which part of it is whose.

A matrix W is ternarised, packed into a file, and read back twice: by the engine, whose compiled kernel multiplies it
with int8 activations, and by the oracle, which decodes it with its own code and adds in float64. Four errors come of
it, each as a mean square over that of the product it is compared with:

- ternarisation: W · x against the decoded weights · x, both float64. About 0.26 for normally distributed weights
  whatever the format: that is what training with ternary weights is for. Nothing for weights that are ternary.
- activation: the decoded weights · x against the same with x rounded to int8 a token. BitNet's own, in every engine.
- kernel: the engine's product against the oracle's, with the same weights and the same rounded activations. This is
  the format's and the engine's part, and has an envelope.
- total: the engine's product against W · x.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from bitnet.codecs import Ternary, codecs, ternarise, ternary_codes
from bitnet.codecs.tiles import Tile, kernel_config, propose_tile
from bitnet.errors import UsageError
from bitnet.formats import KERNEL_CONFIG_KEY, read_formats
from bitnet.gguf import GGMLType, TensorData, read, write
from bitnet.kernels.row_tiles import as_rows
from bitnet.linear import Backend, TernaryMatrix
from crossval.envelope import QUANTISED_PRODUCT, TERNARY_KEPT
from reference import rounding
from reference.decode import decode
from reference.semantics import CONTRACT

Inputs = Literal["dense", "ternary"]
Float64 = NDArray[np.float64]

TYPES = tuple(GGMLType[name] for name in QUANTISED_PRODUCT)
_NAME = "blk.0.attn_q.weight"
_SHAPE = (320, 768)  # rows and columns that every format takes; TL2 has triples and pairs in it
_N_TOKEN = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantiserAccuracy:
    """What one format costs on one kind of weights.

    Attributes:
        weight_type: The format.
        inputs: What was ternarised: `dense`, normally distributed weights, or `ternary` ones.
        kernel_id: What computed, as in the ledger.
        ternarisation, activation, kernel, total: Relative mean squared errors.
        kept: Relative mean squared error of the weights themselves.
        compared: Values of the product.
    """

    weight_type: str
    inputs: Inputs
    kernel_id: str
    ternarisation: float
    activation: float
    kernel: float
    total: float
    kept: float
    compared: int

    @property
    def passed(self) -> bool:
        """Whether the kernel is within its envelope, and ternary weights were kept as they were."""
        kept = self.inputs == "dense" or (TERNARY_KEPT.holds(self.kept) and TERNARY_KEPT.holds(self.ternarisation))
        return kept and QUANTISED_PRODUCT[self.weight_type].holds(self.kernel)


def quantiser_accuracy(
    type_: GGMLType, inputs: Inputs, *, device: str = "cpu", shape: tuple[int, int] = _SHAPE, seed: int = 0
) -> QuantiserAccuracy:
    """Measure one format.

    Args:
        type_: I2_S, TL1, TL2, TQ1_0 or TQ2_0.
        inputs: Which weights to ternarise.
        device: Of the engine.
        shape: Of the matrix.
        seed: Of the weights and the activations.

    Raises:
        UsageError: Another type or other inputs, or a shape that does not suit the type.
    """
    if type_ not in TYPES or inputs not in get_args(Inputs):
        raise UsageError(f"no accuracy of {type_.name} on {inputs!r}", remedy="a ternary type, dense or ternary")
    rng = np.random.default_rng(seed)
    weights = (rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
    if inputs == "ternary":
        trits = rng.integers(-1, 2, shape)
        weights = (trits * np.float32(1 / np.sqrt(shape[1]))).astype(np.float32)
    x = rng.standard_normal((_N_TOKEN, shape[1])).astype(np.float32)
    ternary = ternarise(weights)
    with tempfile.TemporaryDirectory() as folder:
        path = _packed(Path(folder) / "one.gguf", type_, ternary)
        engine, kernel_id = _engine_product(path, x, device)
        oracle, rounded_weights, q = _oracle_product(path, x)
    ideal = x.astype(np.float64) @ weights.astype(np.float64).T
    ternarised = x.astype(np.float64) @ rounded_weights.T
    return QuantiserAccuracy(
        weight_type=type_.name,
        inputs=inputs,
        kernel_id=kernel_id,
        ternarisation=_relative(ternarised, ideal),
        activation=_relative(q @ rounded_weights.T, ternarised),
        kernel=_relative(engine, oracle),
        total=_relative(engine, ideal),
        kept=_relative(rounded_weights, weights.astype(np.float64)),
        compared=engine.size,
    )


def all_accuracies(device: str = "cpu") -> list[QuantiserAccuracy]:
    """Every format on dense and on ternary weights."""
    return [quantiser_accuracy(t, inputs, device=device) for t in TYPES for inputs in get_args(Inputs)]


def accuracy_table(rows: Iterable[QuantiserAccuracy]) -> Table:
    """The measurements as a table to print."""
    title = "Mean squared error of a product / its mean square"
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=title)
    for heading in ("format", "weights", "ternarised", "activations", "kernel", "limit", "total", ""):
        table.add_column(heading, no_wrap=True)
    for r in rows:
        numbers = (r.ternarisation, r.activation, r.kernel, QUANTISED_PRODUCT[r.weight_type].limit, r.total)
        table.add_row(r.weight_type, r.inputs, *(f"{n:.1e}" for n in numbers), "yes" if r.passed else "NO")
    table.caption = "The limit is the kernel's; ternarising and int8 activations are BitNet's own, in every engine."
    return table


def _packed(path: Path, type_: GGMLType, ternary: Ternary) -> Path:
    """A file with the matrix alone."""
    shape = (ternary.trits.shape[0], ternary.trits.shape[1])
    metadata: dict[str, object] = {"general.architecture": "bitnet"}
    tiles: dict[tuple[GGMLType, int, int], Tile] = {}
    if type_ in (GGMLType.TL1, GGMLType.TL2):
        tiles[type_, *shape] = propose_tile(type_, shape)
        metadata[KERNEL_CONFIG_KEY] = kernel_config({shape: tiles[type_, *shape]})
    beside = type_ in (GGMLType.TQ1_0, GGMLType.TQ2_0)
    scale = np.float32(1.0 if ternary.scale is None else ternary.scale)
    packed = codecs(tiles=tiles)[type_].encode(Ternary(trits=ternary.trits, scale=1.0 if beside else float(scale)))
    tensors = [TensorData(name=_NAME, shape=shape, type=type_, data=packed)]
    if beside:
        name = _NAME.replace(".weight", ".scale")
        tensors.append(TensorData(name=name, shape=(1,), type=GGMLType.F32, data=np.array([scale]).view(np.uint8)))
    write(path, metadata, tensors)
    return path


def _engine_product(path: Path, x: NDArray[np.float32], device: str) -> tuple[Float64, str]:
    """The engine's product [n_token, n_row] and the kernel that computed it."""
    file = read(path)
    info = file.tensors[_NAME]
    codes, scale, _ = ternary_codes(info.type, file.raw(_NAME), info.shape, read_formats(file).codecs)
    beside = file.tensors.get(_NAME.replace(".weight", ".scale"))
    extra = np.float32(1) if beside is None else file.raw(beside.name).view(np.float32)[0]
    matrix = TernaryMatrix(
        name=_NAME,
        type_name=info.type.name,
        n_row=info.shape[0],
        n_col=info.shape[1],
        n_bytes=codes.nbytes,
        tiles=as_rows(codes),
        scale=np.float32(np.float32(scale) * extra),
        block_scale=None,
    )
    backend = Backend(device, 1)
    product = backend.product(backend.pack(matrix), backend.activations(x), "int8_token", "projection").astype(
        np.float64
    )
    return product, next(iter(backend.ledger))[0].kernel


def _oracle_product(path: Path, x: NDArray[np.float32]) -> tuple[Float64, Float64, Float64]:
    """The oracle's product [n_token, n_row], the weights and the rounded activations it is of, all float64."""
    matrix = decode(read(path), _NAME, CONTRACT)
    q, divisor = rounding.int8_token(x)
    scale = np.float64(matrix.scale) * np.float64(1 if matrix.extra_scale is None else matrix.extra_scale)
    product = matrix.product(q) / divisor.astype(np.float64) * scale
    return product, matrix.values.astype(np.float64) * scale, q / divisor.astype(np.float64)


def _relative(found: Float64, due: Float64) -> float:
    return float(((found - due) ** 2).mean() / (due**2).mean())
