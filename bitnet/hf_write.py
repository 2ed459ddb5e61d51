"""A model written as a Hugging Face checkpoint that transformers itself loads.

Three forms of the ternary matrices:

- `autobitlinear`: packed uint8 with a float32 `weight_scale` that multiplies. The one that keeps the scale of a GGUF to
  the bit, always.
- `bitlinear`: packed, with a `weight_scale` that divides, for what reads no other. Not every float32 is the reciprocal
  of another: where it is not, the scale moves by one unit in the last place, and that is said.
- `bf16`: trit × scale as bfloat16 without a quantization_config, for what makes them ternary itself; the scale is
  rounded to 8 bits.

Everything else becomes float32: transformers keeps the types of a quantised checkpoint, so half-precision embeddings
beside float32 scales would make it compute in a mixture, or not at all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from bitnet.architecture import read_config
from bitnet.codecs import CODECS, Codec
from bitnet.codecs.floats import BF16
from bitnet.config import ModelConfig
from bitnet.errors import TokenizerError, UsageError
from bitnet.formats import read_formats
from bitnet.gguf import GGUF, GGMLType
from bitnet.hf import EMBEDDING, HEAD, NORMS, OUTPUT_NORM, PROJECTIONS, Checkpoint, interleaved_order
from bitnet.hf_tokenizer import write_tokenizer
from bitnet.hf_weights import ROWS_OF_A_CODE
from bitnet.master_weights import Float32, Rows, Trits
from bitnet.parts import MatrixSource, Part, RowReader, matrix_of, retyped, row_blocks, row_reader
from bitnet.safetensors_file import SINGLE, TensorToWrite, write

#: How ternary matrices are stored.
Form = Literal["autobitlinear", "bitlinear", "bf16"]
#: What goes along from one checkpoint to another as it is.
_COMPANIONS = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "generation_config.json",
)
_CARRIED = ("rope_parameters", "rope_scaling", "rope_theta", "bos_token_id", "eos_token_id", "pad_token_id")


#: What a tensor must hold, by its GGUF name, and how it is written.
Pair = tuple[Part, TensorToWrite]


def plan(source: GGUF, form: Form = "autobitlinear") -> list[Pair]:
    """Every tensor of the checkpoint: what it must hold, by its GGUF name, and how it is written.

    Args:
        source: An open model.
        form: Of its ternary matrices.

    Raises:
        UsageError: transformers has no such graph, or a tensor is of a type that a checkpoint does not hold.
    """
    config, _ = read_config(source)
    if config.sub_norms and config.n_q != config.n_embd:
        raise UsageError(f"transformers' BitNet needs heads as wide as n_embd: {config.n_q} is not {config.n_embd}")
    if "rope_freqs.weight" in source.tensors and not isinstance(source, Checkpoint):
        raise UsageError("rope_freqs.weight cannot be told in a config.json", where=source.path)
    table = read_formats(source).codecs

    def floats(name: str, hf: str, order: Rows | None = None) -> Pair:
        return _float(source, name, hf, table, order)

    parts = [floats("token_embd.weight", EMBEDDING)]
    matrices = _matrices(source, config, table)
    for il in range(config.n_layer):
        for name, hf in NORMS.items():
            if config.sub_norms or "sub" not in name:
                parts.append(floats(f"blk.{il}.{name}.weight", f"model.layers.{il}.{hf[0]}"))
        for name, hf_name in PROJECTIONS.items():
            order = _half_split(config, name)
            full, base = f"blk.{il}.{name}.weight", f"model.layers.{il}.{hf_name}"
            if full in matrices:
                parts += (
                    _bf16(matrices[full], base, order) if form == "bf16" else _packed(matrices[full], base, order, form)
                )
            else:
                parts.append(floats(full, base, order))
    parts.append(floats("output_norm.weight", OUTPUT_NORM))
    if not config.tied_head:
        parts.append(floats("output.weight", HEAD))
    return parts


def write_checkpoint(source: GGUF, folder: Path, parts: list[Pair], form: Form = "autobitlinear") -> tuple[str, ...]:
    """Write a checkpoint into a new folder.

    Returns:
        What its user should know.

    Raises:
        UsageError: The disk refuses.
    """
    folder.mkdir()
    write(folder / SINGLE, (tensor for _, tensor in parts), {"format": "pt"})
    notices: list[str] = []
    if isinstance(source, Checkpoint):
        for name in _COMPANIONS:
            if (source.path / name).exists():
                shutil.copyfile(source.path / name, folder / name)
    else:
        try:
            notices += write_tokenizer(source, folder)
        except TokenizerError as error:
            notices.append(f"no tokenizer is written: {error.what}")
    if form == "bf16":
        notices.append("transformers runs these weights as floats, without BitNet's int8 activations")
    linear_class = form if any(tensor.dtype == "U8" for _, tensor in parts) else None
    text = json.dumps(_config(source, linear_class), indent=2, sort_keys=True)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
    return tuple(notices)


def _config(source: GGUF, linear_class: Form | None) -> dict[str, Any]:
    c, _ = read_config(source)
    family = "BitNet" if c.sub_norms else "Llama"
    theta = _shortest(c.rope_theta)
    values: dict[str, Any] = {
        "architectures": [f"{family}ForCausalLM"],
        "model_type": family.lower(),
        "attention_bias": False,
        "dtype": "float32",
        "head_dim": c.head_dim,
        "hidden_act": c.activation,
        "hidden_size": c.n_embd,
        "intermediate_size": c.n_ff,
        "max_position_embeddings": c.n_ctx,
        "num_attention_heads": c.n_head,
        "num_hidden_layers": c.n_layer,
        "num_key_value_heads": c.n_head_kv,
        "rms_norm_eps": _shortest(c.rms_eps),
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "rope_theta": theta,  # for releases before 5
        "tie_word_embeddings": c.tied_head,
        "vocab_size": c.n_vocab,
    }
    if linear_class:
        values["quantization_config"] = {
            "quant_method": "bitnet",
            "linear_class": linear_class,
            "quantization_mode": "offline",
        }
    if isinstance(source, Checkpoint):
        said = {key: source.values[key] for key in _CARRIED if source.values.get(key) is not None}
        if "rope_parameters" in said or "rope_scaling" in said or "rope_theta" in said:
            del values["rope_parameters"], values["rope_theta"]
        return values | said
    for role in ("bos", "eos"):
        token = source.metadata.get(f"tokenizer.ggml.{role}_token_id")
        if token is not None:
            values[f"{role}_token_id"] = int(token)
    return values


def _shortest(value: float) -> float:
    """The shortest decimal of a float32, as people write it: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _matrices(source: GGUF, config: ModelConfig, table: Mapping[GGMLType, Codec]) -> dict[str, MatrixSource]:
    """The projections to pack; none for a Llama whose weights are ordinary floats."""
    found = {name: m for name in source.tensors if (m := matrix_of(source, name, table)) is not None}
    if not config.sub_norms and not any(matrix.exact for matrix in found.values()):
        return {}
    return found


def _half_split(config: ModelConfig, name: str) -> Rows | None:
    """Row of the GGUF for each row of the checkpoint, where they are not the same."""
    heads = {"attn_q": config.n_head, "attn_k": config.n_head_kv}
    if config.rope_style != "interleaved" or name not in heads:
        return None
    return np.argsort(interleaved_order(heads[name], config.head_dim))


def _float(source: GGUF, name: str, hf: str, table: Mapping[GGMLType, Codec], order: Rows | None = None) -> Pair:
    """A tensor of floats, as float32."""
    info = source.tensors.get(name)
    if info is None or info.type not in table or table[info.type].ternary:
        kind = "missing" if info is None else info.type.name
        raise UsageError(f"{name} is {kind}; a checkpoint is made of floats", where=source.path)
    if f"{name.removesuffix('.weight')}.scale" in source.tensors:
        raise UsageError(f"{name} has a .scale beside it, which a checkpoint of floats cannot hold", where=source.path)
    part = retyped(source, info, GGMLType.F32, table)
    read = row_reader(source, info, table)

    def reordered() -> Iterator[Float32]:
        assert order is not None
        yield read()(slice(0, info.shape[0]))[order]

    pieces = part.pieces if order is None else reordered
    return part, TensorToWrite(name=f"{hf}.weight", dtype="F32", shape=info.shape, data=pieces)


def _packed(matrix: MatrixSource, hf: str, order: Rows | None, form: Form) -> Iterator[Pair]:
    n_row, n_col = matrix.info.shape
    if n_row % ROWS_OF_A_CODE:
        raise UsageError(f"{matrix.info.name} has {n_row} rows, which are not a multiple of {ROWS_OF_A_CODE}")

    def pieces() -> Iterator[NDArray[np.uint8]]:
        trits = matrix.read()[1](slice(0, n_row))
        yield _pack(trits if order is None else trits[order])

    def scale() -> Iterator[Float32]:
        value = matrix.scale()
        if not value > 0:
            raise UsageError(f"{matrix.info.name} has the scale {value:g}; a checkpoint holds positive ones")
        yield np.array([value if form == "autobitlinear" else divisor(value)], "<f4")

    part = matrix.part(CODECS[GGMLType.I2_S])
    if form == "bitlinear":
        part = _rescaled(part, matrix, lambda scale: np.float32(1) / divisor(scale))
    shape = (n_row // ROWS_OF_A_CODE, n_col)
    yield part, TensorToWrite(name=f"{hf}.weight", dtype="U8", shape=shape, data=pieces)
    yield part, TensorToWrite(name=f"{hf}.weight_scale", dtype="F32", shape=(1,), data=scale)


def divisor(scale: np.float32) -> np.float32:
    """The float32 whose reciprocal is nearest to a scale: its own rounded reciprocal, or a neighbour of that."""
    near = np.float32(1) / scale
    candidates = np.array([near, np.nextafter(near, np.float32(0)), np.nextafter(near, np.float32(np.inf))], np.float32)
    return np.float32(candidates[np.abs(np.float32(1) / candidates - scale).argmin()])


def _bf16(matrix: MatrixSource, hf: str, order: Rows | None) -> Iterator[Pair]:
    """Trit × scale, in bfloat16."""
    shape = matrix.info.shape

    def rounded(scale: np.float32) -> np.float32:
        return np.float32(BF16.decode(BF16.encode(np.array([[scale]], np.float32)), (1, 1))[0, 0])

    def pieces() -> Iterator[NDArray[np.uint8]]:
        scale, trits, _ = matrix.read()
        if order is None:
            for rows in row_blocks(shape):
                yield BF16.encode(trits(rows).astype(np.float32) * scale)
        else:
            yield BF16.encode(trits(slice(0, shape[0]))[order].astype(np.float32) * scale)

    part = _rescaled(matrix.part(CODECS[GGMLType.I2_S]), matrix, rounded)
    yield part, TensorToWrite(name=f"{hf}.weight", dtype="BF16", shape=shape, data=pieces)


def _rescaled(part: Part, matrix: MatrixSource, change: Callable[[np.float32], np.float32]) -> Part:
    """A part whose scale cannot be stored as it is."""

    def expected() -> RowReader:
        scale, trits, _ = matrix.read()
        return lambda rows: trits(rows).astype(np.float32) * change(scale)

    return replace(part, expected=expected, original=part.expected)


def _pack(trits: Trits) -> NDArray[np.uint8]:
    """Bits 2i and 2i + 1 of row r hold trit + 1 of row r + i · n_row / 4."""
    quarter = len(trits) // ROWS_OF_A_CODE
    packed = np.zeros((quarter, trits.shape[1]), np.uint8)
    for i in range(ROWS_OF_A_CODE):
        packed |= (trits[i * quarter : (i + 1) * quarter] + np.int8(1)).view(np.uint8) << np.uint8(2 * i)
    return packed
