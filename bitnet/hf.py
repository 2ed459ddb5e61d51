"""A Hugging Face checkpoint, read as the GGUF that it would become.

`open_checkpoint` gives an object with the keys, the tensor names, the types and the bytes of a GGUF file, so that
loading and converting have one path for both. Bytes are made when they are asked for, one tensor at a time: packed
and master weights become I2_S, norms become float32, everything else is viewed where it lies.

Three ways of storing a ternary matrix are told apart by what is there:

- packed, uint8 [n_row / 4, n_col]: bits 2i and 2i + 1 of row r hold trit + 1 of row r + i · n_row / 4;
- float and ternary already: one magnitude, whose trits and scale are taken as they are;
- float master weights: scale = mean|w|, trit = clip(round(w / scale), −1, 1).

`weight_scale` beside them divides the product where the configuration says BitLinear (which is the default), and
multiplies it for AutoBitLinear. Llama's query and key rows are put into the order of interleaved rotary pairs, as every
GGUF of that architecture has them: rows change places, no number changes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bitnet.errors import GGUFError, ModelFileError
from bitnet.gguf import GGUF, read
from bitnet.gguf_types import BLOCKS, DEFAULT_ALIGNMENT, GGMLType, TensorInfo, ValueType, tensor_bytes
from bitnet.hf_config import read_config
from bitnet.hf_tokenizer import read_tokenizer
from bitnet.hf_weights import DTYPES, ROWS_OF_A_CODE, Dense, Ternary, fault, vector, wrong_type
from bitnet.master_weights import Rows
from bitnet.safetensors_file import Entry, Shards, no_checkpoint, read_json

_FILE_TYPES = {GGMLType.I2_S: 40, GGMLType.F32: 0, GGMLType.F16: 1, GGMLType.BF16: 32}
_HASH_CHUNK = 16 << 20  # bytes

#: GGUF name → names in checkpoints, the current one first.
NORMS = {
    "attn_norm": ("input_layernorm",),
    "attn_sub_norm": ("self_attn.attn_sub_norm", "self_attn.inner_attn_ln"),
    "ffn_norm": ("post_attention_layernorm",),
    "ffn_sub_norm": ("mlp.ffn_sub_norm", "mlp.ffn_layernorm"),
}
PROJECTIONS = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
EMBEDDING, OUTPUT_NORM, HEAD = "model.embed_tokens", "model.norm", "lm_head"


def interleaved_order(n_head: int, head_dim: int) -> Rows:
    """Row of a half-split query or key matrix for each row of the interleaved one."""
    return np.arange(n_head * head_dim).reshape(n_head, 2, head_dim // 2).swapaxes(1, 2).reshape(-1)


class Checkpoint(GGUF):
    """An open checkpoint folder, as a GGUF.

    Attributes:
        path: The folder.
        metadata: `general.*`, `ARCH.*`, and, read when first asked for, `tokenizer.*`.
        tensors: In the order of a GGUF; their offsets are 0, for they lie in no one file.
        values: The object of config.json.
        config: What it says.
        matrices: The ternary matrices, by name.
        notices: What is worth telling about how it was read.
        tokenizer_notices: And about how its tokenizer was, once that has been.
    """

    made_here = True

    def __init__(self, folder: Path) -> None:
        values = read_json(folder / "config.json")
        self.path = folder
        self.paths = (folder,)
        self.version = 3
        self.alignment = DEFAULT_ALIGNMENT
        self.values = values
        self.config = read_config(values, folder / "config.json")
        self.shards = Shards(folder)
        ends = {role: values.get(f"{role}_token_id") for role in ("bos", "eos")}  # several ids are a list
        self.special_ids = {role: i for role, i in ends.items() if isinstance(i, int) and not isinstance(i, bool)}
        self.matrices: dict[str, Ternary] = {}
        self._notices = list(self.config.notices)
        self._makers: dict[str, Callable[[], NDArray[np.uint8]]] = {}
        self._infos: dict[str, TensorInfo] = {}
        self._unused = dict(self.shards.entries)
        self._sha256 = None
        self._place()
        self.tensors = MappingProxyType(self._infos)
        self.notices = tuple(self._notices)
        self.tokenizer_notices: list[str] = []
        self.metadata: _Metadata = _Metadata(
            self._keys(), lambda: read_tokenizer(folder, self.config.n_vocab, self.tokenizer_notices)
        )
        self.types = _Types(self.metadata)

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {len(self.tensors)} tensors)"

    @property
    def n_bytes(self) -> int:
        """Size of the weight files."""
        return self.shards.n_bytes

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes the tensor has in a GGUF, made now.

        Raises:
            GGUFError: There is no such tensor.
            ModelFileError: What is stored is NaN, no ternary code, or was changed since; file and tensor are named.
        """
        if name not in self._makers:
            raise GGUFError("there is no such tensor", path=self.path, field=f"tensor {name}")
        return self._makers[name]()

    def sha256(self) -> str:
        """Digest of config.json and the weight files, one after the other, in hexadecimal."""
        if self._sha256 is None:
            digest = hashlib.sha256((self.path / "config.json").read_bytes())
            for file in self.shards.files:
                with file.open("rb") as stream:
                    while chunk := stream.read(_HASH_CHUNK):
                        digest.update(chunk)
            self._sha256 = digest.hexdigest()
        return self._sha256

    def forget_tokenizer(self) -> None:
        """Go on without the `tokenizer.*` keys, where they cannot be read."""
        self.metadata.forget_tokenizer()

    def check_unchanged(self) -> None:
        """Refuse weight files that were written to in place; as for a GGUF."""
        self.shards.check_unchanged()

    def release(self) -> None:
        """Give the pages read so far back to the system."""
        self.shards.release()

    # --- what lies where ------------------------------------------------------------------------------------------

    def _place(self) -> None:
        c = self.config
        n_q, n_kv = c.n_head * c.head_dim, c.n_head_kv * c.head_dim
        widths = {
            "attn_q": (n_q, c.n_embd),
            "attn_k": (n_kv, c.n_embd),
            "attn_v": (n_kv, c.n_embd),
            "attn_output": (c.n_embd, n_q),
            "ffn_gate": (c.n_ff, c.n_embd),
            "ffn_up": (c.n_ff, c.n_embd),
            "ffn_down": (c.n_embd, c.n_ff),
        }
        norms = {"attn_norm": c.n_embd, "attn_sub_norm": n_q, "ffn_norm": c.n_embd, "ffn_sub_norm": c.n_ff}
        heads = {"attn_q": c.n_head, "attn_k": c.n_head_kv} if c.family == "llama" else {}
        self._dense("token_embd", EMBEDDING, (c.n_vocab, c.n_embd))
        for il in range(c.n_layer):
            for name, n in norms.items():
                if c.family == "bitnet" or "sub" not in name:
                    self._norm(f"blk.{il}.{name}", tuple(f"model.layers.{il}.{hf}" for hf in NORMS[name]), n)
            for name, hf in PROJECTIONS.items():
                order = interleaved_order(heads[name], c.head_dim) if name in heads else None
                self._projection(f"blk.{il}.{name}", f"model.layers.{il}.{hf}", widths[name], order)
            self._unused.pop(f"model.layers.{il}.self_attn.rotary_emb.inv_freq", None)  # computed, not learned
        self._norm("output_norm", (OUTPUT_NORM,), c.n_embd)
        self._head()
        if c.rope_factors is not None:
            factors = c.rope_factors
            self._add("rope_freqs.weight", factors.shape, GGMLType.F32, lambda: factors.view(np.uint8))
        if self._unused:
            first = self._unused[min(self._unused)]
            raise fault(
                first,
                f"is used by no operation of {c.family}, one of {len(self._unused)} such tensors",
                f"model_type {self.values.get('model_type')!r} may be wrong, or the checkpoint needs code of its own",
            )

    def _head(self) -> None:
        c, name = self.config, f"{HEAD}.weight"
        if c.tied:
            if self._unused.pop(name, None) is not None:
                self._notices.append(f"{name} is not used: tie_word_embeddings is true")
        elif c.tied is None and name not in self._unused:
            self._notices.append(f"neither tie_word_embeddings nor {name}: the head is the embedding")
        else:
            self._dense("output", HEAD, (c.n_vocab, c.n_embd))

    def _take(self, names: tuple[str, ...]) -> Entry:
        for name in names:
            if name in self._unused:
                return self._unused.pop(name)
        raise ModelFileError(
            f"tensor {names[0]} is missing",
            where=self.path,
            remedy="the checkpoint is incomplete, or its configuration belongs to another",
        )

    def _check_shape(self, entry: Entry, shape: tuple[int, ...]) -> None:
        if entry.shape != shape:
            raise fault(entry, f"has shape {list(entry.shape)}; config.json asks for {list(shape)}")

    def _add(self, name: str, shape: tuple[int, ...], type_: GGMLType, make: Callable[[], NDArray[np.uint8]]) -> None:
        size = tensor_bytes(type_, shape)
        self._infos[name] = TensorInfo(name=name, shape=shape, type=type_, offset=0, n_bytes=size)
        self._makers[name] = make

    def _norm(self, base: str, names: tuple[str, ...], n: int) -> None:
        entry = self._take(tuple(f"{name}.weight" for name in names))
        self._check_shape(entry, (n,))
        self._add(f"{base}.weight", (n,), GGMLType.F32, lambda: vector(self.shards, entry).view(np.uint8))

    def _dense(self, base: str, hf: str, shape: tuple[int, int], order: Rows | None = None) -> None:
        entry = self._take((f"{hf}.weight",))
        if entry.dtype not in DTYPES:
            raise wrong_type(entry)
        self._check_shape(entry, shape)
        dense = Dense(shards=self.shards, entry=entry, order=order)
        self._add(f"{base}.weight", shape, DTYPES[entry.dtype], dense.raw)

    def _projection(self, base: str, hf: str, shape: tuple[int, int], order: Rows | None) -> None:
        c, entry = self.config, self._unused.get(f"{hf}.weight")
        packed = entry is not None and entry.dtype == "U8"
        if not packed and c.linear_class == "none" and not c.online:
            self._dense(base, hf, shape, order)
            return
        entry = self._take((f"{hf}.weight",))
        scale = self._unused.pop(f"{hf}.weight_scale", None)
        if packed and c.linear_class == "none":
            raise fault(
                entry,
                "is packed, but config.json has no quantization_config",
                "without linear_class nothing says whether weight_scale divides (bitlinear) or multiplies",
            )
        if packed and scale is None:
            raise fault(entry, "is packed, but has no weight_scale beside it")
        if scale is not None and math.prod(scale.shape) != 1:
            raise fault(scale, f"has shape {list(scale.shape)}; one number is due")
        stored = (-(-shape[0] // ROWS_OF_A_CODE), shape[1]) if packed else shape
        if packed and shape[0] % ROWS_OF_A_CODE:
            raise fault(entry, f"is packed, but its {shape[0]} rows are not a multiple of {ROWS_OF_A_CODE}")
        self._check_shape(entry, stored)
        rows = np.arange(shape[0]) if order is None else order
        matrix = Ternary(
            shards=self.shards,
            entry=entry,
            shape=shape,
            scale_entry=scale,
            linear_class=c.linear_class,
            master=c.online,
            order=rows,
        )
        self.matrices[f"{base}.weight"] = matrix
        if shape[1] % BLOCKS[GGMLType.I2_S][0] == 0:
            self._add(f"{base}.weight", shape, GGMLType.I2_S, matrix.raw)
        else:
            self._add(f"{base}.weight", shape, GGMLType.F16, matrix.raw_f16)
            self._add(f"{base}.scale", (1,), GGMLType.F32, matrix.raw_scale)

    def _keys(self) -> dict[str, tuple[ValueType, Any]]:
        c = self.config
        name = self.values.get("_name_or_path") or self.path.resolve().name
        first = self._infos["blk.0.attn_q.weight"].type
        keys = {
            "general.architecture": (ValueType.STRING, c.arch),
            "general.name": (ValueType.STRING, str(name)),
            "general.file_type": (ValueType.UINT32, _FILE_TYPES[first]),
            **c.metadata,
        }
        if c.family == "bitnet" and "output.weight" in self._infos:
            keys[f"{c.arch}.tie_word_embeddings"] = (ValueType.BOOL, False)
        return keys


class _Metadata(Mapping[str, Any]):
    """Keys of the model, and the tokenizer's: a vocabulary is large, and many callers bring ids."""

    def __init__(
        self,
        model: Mapping[str, tuple[ValueType, Any]],
        tokenizer: Callable[[], Mapping[str, tuple[ValueType, Any]]],
    ) -> None:
        self._model = model
        self._read_tokenizer = tokenizer
        self._tokenizer: Mapping[str, tuple[ValueType, Any]] | None = None

    def typed(self, key: str) -> tuple[ValueType, Any]:
        """Type and value of a key."""
        if not key.startswith("tokenizer."):
            return self._model[key]
        if self._tokenizer is None:
            self._tokenizer = self._read_tokenizer()
        return self._tokenizer[key]

    def forget_tokenizer(self) -> None:
        """Have no tokenizer keys from now on."""
        self._tokenizer = {}

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401  # as GGUF.metadata
        return self.typed(key)[1]

    def __iter__(self) -> Iterator[str]:
        if self._tokenizer is None:
            self._tokenizer = self._read_tokenizer()
        return iter((*self._model, *self._tokenizer))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Types(Mapping[str, ValueType]):
    """The type of every key."""

    def __init__(self, metadata: _Metadata) -> None:
        self._metadata = metadata

    def __getitem__(self, key: str) -> ValueType:
        return self._metadata.typed(key)[0]

    def __iter__(self) -> Iterator[str]:
        return iter(self._metadata)

    def __len__(self) -> int:
        return len(self._metadata)


def open_model(path: str | PathLike[str]) -> GGUF:
    """Open a GGUF file or a checkpoint; a checkpoint is its folder, or one of the files that make it one.

    Raises:
        ModelFileError: There is no such file, or it is damaged.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / "config.json").exists():
            raise no_checkpoint(path, "is a folder without config.json, so it is no checkpoint")
        return Checkpoint(path)
    if path.suffix == ".safetensors" or path.name in ("config.json", "model.safetensors.index.json"):
        if not path.exists():
            raise ModelFileError("there is no such file", where=path, remedy="check the path")
        return Checkpoint(path.parent)
    return read(path)
