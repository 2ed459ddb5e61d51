"""bitnet.cpp, live, from the tree that `BITNET_CPP_DIR` names; `process.py` runs it in a child.

The library is spoken to through our own small C interface (`shim.cpp`), compiled against that tree's headers: ids,
logits of every position, every intermediate, and tensors as the library itself decodes them, each without a detour
that could change a bit. Which activation a build computes is not assumed; the ladder finds it out from what it shows.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from reference import bitnet_cpp_build
from reference.bitnet_cpp_build import DIRECTORY_VARIABLE
from reference.ggml import digest, file_sha256, mapped_libraries
from reference.llama_cpp import ACTIVATION_OF
from reference.llama_cpp_taps import Passes, tap_of
from reference.recorded import BITNET_CPP_NUMERICS
from reference.rounding import int8_token
from reference.runner import (
    Float32,
    Observation,
    ReferenceFailedError,
    ReferenceUnavailableError,
    Request,
    Rows,
    RunnerInfo,
    span,
)

_P, _S, _I = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int
_WANTED = ctypes.CFUNCTYPE(_I, _S, _S)
_RECORD = ctypes.CFUNCTYPE(None, _S, _S, ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_int64))
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "shim_error": (_S, ()),
    "shim_trouble": (_S, (_P,)),
    "shim_system": (_S, ()),
    "shim_open": (_P, (_S, _I)),
    "shim_close": (None, (_P,)),
    "shim_n_vocab": (_I, (_P,)),
    "shim_meta": (_I, (_P, _S, _S, _I)),
    "shim_tokenize": (_I, (_P, _S, _I, _P, _I, _I, _I)),
    "shim_begin": (_I, (_P, _I, _I, _I, _I, _I, _WANTED, _RECORD)),
    "shim_decode": (_I, (_P, _P, _I, _I, _P)),
    "shim_tensor": (_I, (_P, _S, _S, _I, _P)),
    "shim_weights": (_I, (_P, _S, _P)),
}
_SMALL_FILE = 64 << 20


class BitnetCpp:
    """A model in bitnet.cpp.

    Args:
        model: GGUF file.
        directory: The tree; None: `BITNET_CPP_DIR`.
        n_threads: Threads; None: one for a small file, else as many as this process may use.
        kv: Type of the KV cache; f16 is what bitnet.cpp itself uses.
        n_ubatch: Tokens of one graph evaluation; None: all that are evaluated together.
        vocab_only: Load the tokenizer alone.

    Raises:
        ReferenceUnavailableError: No tree, no build, no compiler, or it refuses the model.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        directory: str | os.PathLike[str] | None = None,
        n_threads: int | None = None,
        kv: Literal["f32", "f16"] = "f16",
        n_ubatch: int | None = None,
        vocab_only: bool = False,
    ) -> None:
        self._path = Path(model)
        self._handle: int | None = None
        if not self._path.is_file():
            raise ReferenceUnavailableError(f"there is no model file {self._path}")
        root = Path(directory) if directory is not None else bitnet_cpp_build.declared()
        if root is None:
            raise ReferenceUnavailableError(
                "there is no bitnet.cpp here", remedy=f"build it, and name its tree with {DIRECTORY_VARIABLE}"
            )
        os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an abort would start a debugger on this process
        self._tree = bitnet_cpp_build.find_tree(root)
        self._shim = _bind(bitnet_cpp_build.compile_shim(self._tree))
        self._kv, self._n_ubatch, self._vocab_only = kv, n_ubatch, vocab_only
        self._n_threads = n_threads or (1 if self._path.stat().st_size < _SMALL_FILE else os.cpu_count() or 1)
        self._handle = self._shim.shim_open(os.fsencode(self._path), int(vocab_only))
        if not self._handle:
            why = self._said() or "it does not say why"
            raise ReferenceUnavailableError(
                f"bitnet.cpp refuses {self._path.name}: {why.replace(str(self._path), self._path.name)}",
                remedy="show it a copy of the model in a form that it reads",
            )
        self._n_vocab = int(self._shim.shim_n_vocab(self._handle))
        self._arch = self._meta("general.architecture")
        self.info = self._describe()

    def run(self, request: Request) -> Observation:
        """Evaluate, capture and continue; see `Request`. Every request has a fresh context.

        Raises:
            ReferenceUnavailableError: For what it cannot do: locked inputs, no tokens or unknown ones.
            ReferenceFailedError: If it does not evaluate the tokens.
        """
        n = len(request.ids)
        if self._vocab_only or request.lock:
            what = (
                "only the vocabulary was loaded" if self._vocab_only else "bitnet.cpp cannot compute on locked inputs"
            )
            raise ReferenceUnavailableError(what)
        if not n or not all(0 <= i < self._n_vocab for i in request.ids):
            raise ReferenceUnavailableError(
                f"bitnet.cpp was asked to evaluate {list(request.ids)[:8]} of {self._n_vocab}"
            )
        first = n if request.n_batch is None else min(max(request.n_batch, 1), n)
        passes = Passes()
        callbacks = self._callbacks(passes) if request.taps else (_WANTED(0), _RECORD(0))
        sizes = (n + request.n_greedy, first, min(self._n_ubatch or first, first))
        if self._shim.shim_begin(self._handle, *sizes, self._n_threads, int(self._kv == "f16"), *callbacks) != 0:
            raise ReferenceFailedError(f"bitnet.cpp made no context: {self._said()}")
        started = time.perf_counter()
        logits = [self._decode(request.ids[:first], 0)]
        prefilled = time.perf_counter()
        logits += [self._decode(request.ids[at : at + 1], at) for at in range(first, n)]
        passes.on = False
        generated = [int(np.argmax(logits[-1][-1]))] if request.n_greedy else []  # of equals the lowest id
        while len(generated) < request.n_greedy:
            logits.append(self._decode(generated[-1:], n + len(generated) - 1))
            generated.append(int(np.argmax(logits[-1][-1])))
        trouble = self._shim.shim_trouble(self._handle).decode("utf-8", "replace")
        try:
            passes.guard(lambda: _refuse(trouble))
            taps = passes.taps(n)
        except ValueError as error:
            raise ReferenceFailedError(f"bitnet.cpp's intermediates cannot be told apart: {error}") from error
        return Observation(
            ids=(*request.ids, *generated),
            logits=np.concatenate(logits)[n - 1 if request.last_only else 0 :],
            generated=tuple(generated),
            taps=taps,
            seconds={"prefill": prefilled - started, "decode": time.perf_counter() - prefilled},
        )

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> tuple[int, ...]:
        """Ids of a text. Bytes that are no UTF-8 are given as Python's `surrogateescape` spells them."""
        data = text.encode("utf-8", "surrogateescape")
        room = len(data) + 8
        for _ in range(2):
            ids = (ctypes.c_int32 * room)()
            n = self._shim.shim_tokenize(self._handle, data, len(data), ids, room, int(add_special), int(parse_special))
            if n >= 0:
                return tuple(ids[:n])
            room = -n
        raise ReferenceFailedError(f"llama_tokenize returned {n}")

    def weights(self, name: str, rows: Rows = None) -> Float32:
        """A tensor, or some of its rows, as the library decodes it, [rows, columns]; a vector is one row."""
        shape = self._tensor(name)
        if shape is None:
            raise ReferenceUnavailableError(f"{self._path.name} has no tensor {name!r}")
        values = np.empty(shape[1], np.float32)
        code = self._shim.shim_weights(self._handle, name.encode(), values.ctypes.data)
        if code != 0:
            what = f"has no decoder for {shape[0]}" if code == -2 else f"cannot read {name}"
            raise ReferenceUnavailableError(f"this bitnet.cpp {what}")
        return values[span(rows)]

    def close(self) -> None:
        """Free the model."""
        if self._handle:
            self._shim.shim_close(self._handle)
        self._handle = None

    # ---- the library ----------------------------------------------------------------------------------------------

    def _callbacks(self, passes: Passes) -> tuple[Any, Any]:
        """What the shim asks and tells for every node. They may not raise: the library is in between."""
        sub_norms = self._arch.startswith("bitnet")

        def key(name: bytes, operation: bytes) -> tuple[str, int] | None:
            return tap_of(name.decode("utf-8", "replace"), operation.decode(), sub_norms=sub_norms)

        def wanted(name: bytes, operation: bytes) -> int:
            return int(passes.on and passes.guard(lambda: key(name, operation)) is not None)

        def record(name: bytes, operation: bytes, data: Any, extents: Any) -> None:  # noqa: ANN401  # ctypes pointers
            def enter() -> None:
                found = key(name, operation)
                if found is not None:
                    shape = tuple(extents[:4])
                    values = np.ctypeslib.as_array(data, (int(np.prod(shape)),)).copy()
                    passes.enter(found, values, shape, rotary=operation == b"ROPE")

            passes.guard(enter)

        self._kept = _WANTED(wanted), _RECORD(record)  # ctypes frees a callback that nobody holds
        return self._kept

    def _decode(self, tokens: Sequence[int], position: int) -> Float32:
        n = len(tokens)
        ids = (ctypes.c_int32 * n)(*tokens)
        rows = np.empty((n, self._n_vocab), np.float32)
        code = self._shim.shim_decode(self._handle, ids, n, position, rows.ctypes.data)
        if code != 0:
            raise ReferenceFailedError(f"llama_decode returned {code} for {n} tokens at {position}: {self._said()}")
        return rows

    def _said(self) -> str:
        return str(self._shim.shim_error().decode("utf-8", "replace")).strip()

    def _meta(self, key: str) -> str:
        out = ctypes.create_string_buffer(256)
        found = self._shim.shim_meta(self._handle, key.encode(), out, len(out)) >= 0
        return out.value.decode("utf-8", "replace") if found else ""

    def _tensor(self, name: str) -> tuple[str, tuple[int, int]] | None:
        """Type and shape [rows, columns] of a tensor of the file."""
        type_name, extents = ctypes.create_string_buffer(64), (ctypes.c_int64 * 4)()
        if self._shim.shim_tensor(self._handle, name.encode(), type_name, len(type_name), extents) != 0:
            return None
        columns, *rest = extents
        return type_name.value.decode(), (int(np.prod(rest)), int(columns))

    def _describe(self) -> RunnerInfo:
        libraries = mapped_libraries(self._tree.libraries[0].parent)
        return RunnerInfo(
            name="bitnet.cpp" if self._tree.fork else "llama.cpp",
            family="ggml",
            version=bitnet_cpp_build.version_of(self._tree.root),
            library_sha256=digest(libraries),
            obtained="live",
            numerics=self._numerics(),
            model_sha256=file_sha256(self._path),
            detail={
                "arch": self._arch,
                "threads": str(self._n_threads),
                "libraries": ", ".join(path.name for path in libraries),
                "headers": ", ".join(sorted(self._tree.features)),
                "system": str(self._shim.shim_system().decode("utf-8", "replace")).strip(),
            },
        )

    def _numerics(self) -> dict[str, str]:
        """How this build rounds, by the types in the file."""
        found = self._tensor("blk.0.attn_q.weight")
        kind = "f32" if found is None else found[0]
        activation = ACTIVATION_OF.get(kind, "none")
        if kind in {"i2_s", "tl1", "tl2"}:
            activation = quantiser(self._tree.libraries)
        head = self._tensor("output.weight") or self._tensor("token_embd.weight")
        wide = head is None or head[0] not in {"f16", "bf16"}
        attention = {"kv": "f32", "query": "f32", "probs": "f32"}
        if self._kv == "f16":
            attention = {name: BITNET_CPP_NUMERICS[name] for name in attention}
        if self._kv == "f16" and not self._tree.fork:
            attention["probs"] = "f16"
        rounded = BITNET_CPP_NUMERICS["head"] if self._tree.fork else (head or ("f32",))[0]
        return {"activation": activation, **attention, "head": "f32" if wide else rounded, "rope": "f32_iterated"}


def _refuse(trouble: str) -> None:
    if trouble:
        raise ValueError(trouble)


def quantiser(libraries: Sequence[Path]) -> str:
    """How these libraries round activations to int8, by their own answer where the known ways differ.

    Compilers that fuse multiplications with additions across statements, as gcc does unless told otherwise, leave
    activation · scale unrounded. A library that does not offer its quantiser is taken by its source.
    """
    row = _telling()
    codes = np.zeros(row.size, np.int8)
    scale, total = (np.zeros(1, kind) for kind in (np.float32, np.int32))
    for path in libraries:
        quantise = getattr(ctypes.CDLL(str(path)), "quantize_row_i8_s", None)
        if quantise is not None:
            quantise.restype, quantise.argtypes = None, (_P, _P, ctypes.c_int64, _P, _P)
            quantise(*(a.ctypes.data for a in (row, codes)), row.size, *(a.ctypes.data for a in (scale, total)))
            ways = ("int8_token", "int8_token_fused")
            found = [way for way in ways if np.array_equal(int8_token(row[None], kind=way)[0][0], codes)]
            return found[0] if found else "int8_token"  # a third way is the ladder's to find
    return "int8_token"


def _telling() -> Float32:
    """Activations, a multiple of 128, half of whose products with their scale are ties in float32 and nowhere else."""
    largest = np.float32(3.0)  # 127 / 3 is no float32
    scale = np.float32(127.0 / np.float64(largest))
    near = ((np.arange(127) + 0.5) / scale).astype(np.float32)
    near = np.concatenate([near, np.nextafter(near, np.float32(0)), np.nextafter(near, largest)])
    tells = near[np.rint(near * scale) != np.rint(near.astype(np.float64) * scale)]
    return np.resize(np.stack([np.resize(largest, tells.size), tells], axis=1), 512)


def _bind(path: Path) -> Any:  # noqa: ANN401  # ctypes has no better word
    """The compiled shim."""
    try:
        shim = ctypes.CDLL(str(path))
    except OSError as error:
        raise ReferenceUnavailableError(f"the library of bitnet.cpp does not load: {error}") from error
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(shim, name)
        function.restype, function.argtypes = result, arguments
    return shim
