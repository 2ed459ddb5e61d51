"""llama.cpp, live, in this process; `process.py` runs it in a child, because ggml aborts on what it does not like.

Only the low-level interface of `llama-cpp-python` is used: logits of every position, a greedy continuation, token
ids, and by `cb_eval` every intermediate (`llama_cpp_taps.py`). The library comes from `llama_cpp_build.py`. Its
defaults (F16 KV cache, flash attention) round in ways that no other engine does, so here they are off unless asked
for. With an F32 KV cache and no flash attention nothing inside attention is rounded.

llama.cpp computes SiLU for arch `bitnet` whatever the file declares, and refuses arch `bitnet-b1.58` and types 36–38.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from reference import llama_cpp_build
from reference.ggml import Ggml, StoredTensor, digest, file_sha256
from reference.llama_cpp_taps import Capture
from reference.runner import (
    Float32,
    Observation,
    ReferenceFailedError,
    ReferenceUnavailableError,
    Request,
    Rows,
    RunnerInfo,
)

#: How ggml's CPU rounds the other operand of a product with weights of a type (`vec_dot_type`), as Numerics names it.
ACTIVATION_OF = MappingProxyType(
    {"f32": "none", "f16": "f16", "bf16": "bf16", "q8_0": "q8_0", "q4_0": "q8_0", "tq1_0": "q8_k", "tq2_0": "q8_k"}
)
_HEAD_OF = MappingProxyType({"f32": "f32", "f16": "f16", "bf16": "bf16"})

_PROJECTIONS = tuple(
    f".{name}.weight" for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
)
_KV_TYPES = MappingProxyType({"f32": 0, "f16": 1})
_BINDING = 'CMAKE_ARGS="-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF" pip install llama-cpp-python'

_SMALL_FILE = 64 << 20

_LEVEL_WARN, _LEVEL_ERROR, _LEVEL_CONTINUED = 3, 4, 5


class _Log:
    """The last lines llama.cpp logged; warnings and errors also go to standard error, where a crash leaves them."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=200)

    def __call__(self, level: int, text: bytes | None, _user_data: object) -> None:
        said = (text or b"").decode("utf-8", "replace")
        if level == _LEVEL_CONTINUED and self._lines:
            level, before = self._lines.pop()
            self._lines.append((level, before + said))
        else:
            self._lines.append((level, said))
        if level >= _LEVEL_WARN:
            sys.stderr.write(said)

    def clear(self) -> None:
        """Forget what was said about something else."""
        self._lines.clear()

    def why(self) -> str:
        """The first error, which is the nearest to the cause, else the last line."""
        errors = [said.strip() for level, said in self._lines if level == _LEVEL_ERROR]
        return next(iter(errors), self._lines[-1][1].strip() if self._lines else "it does not say why")


#: The logger of the library is global, so one callback is kept for the life of the process.
_LOG = _Log()
_KEPT: list[Any] = []


def _bind(folder: Path) -> Any:  # noqa: ANN401  # the binding has no type information
    """The binding, loaded on the library in `folder`."""
    os.environ[llama_cpp_build.LIBRARY_VARIABLE] = str(folder)
    os.environ.setdefault("GGML_NO_BACKTRACE", "1")  # an abort would start a debugger on this process
    try:
        api: Any = importlib.import_module("llama_cpp.llama_cpp")
    except ModuleNotFoundError as error:
        remedy = f"{_BINDING}=={llama_cpp_build.pinned_version()}"
        raise ReferenceUnavailableError("the package llama-cpp-python is not installed", remedy=remedy) from error
    except (RuntimeError, AttributeError, OSError) as error:
        raise ReferenceUnavailableError(f"libllama in {folder} does not load: {error}") from error
    defaults = api.llama_context_default_params()
    # the header's own defaults: F16 cache, 512 tokens, automatic flash attention. A struct of another layout differs.
    if (defaults.n_ctx, defaults.type_k, defaults.type_v, defaults.flash_attn_type) != (512, 1, 1, -1):
        raise ReferenceUnavailableError(
            f"libllama in {folder} is not of the version that llama-cpp-python expects",
            remedy=f"unset {llama_cpp_build.LIBRARY_VARIABLE} and run python -m reference.llama_cpp_build",
        )
    if not _KEPT:
        _KEPT.append(api.llama_log_callback(_LOG))
        api.llama_log_set(_KEPT[0], ctypes.c_void_p(0))
        api.llama_backend_init()
    return api


class LlamaCpp:
    """A model in llama.cpp.

    Args:
        model: GGUF file.
        n_threads: Threads; None: one for a small file, else as many as this process may use. The results do not
            depend on it, and on a busy machine two threads that wait for each other are many times slower than one.
        kv: Type of the KV cache.
        flash_attention: Whether to use it (it needs, and rounds to, f16).
        n_ubatch: Tokens of one graph evaluation; None: all that are evaluated together.
        n_ctx: Size of the cache, tokens; None: as many as a request needs.
        vocab_only: Load the tokenizer alone: `tokenize` and `weights` work, `run` does not.

    Raises:
        ReferenceUnavailableError: Not installed, not built, or it refuses the model; with its own words.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        n_threads: int | None = None,
        kv: Literal["f32", "f16"] = "f32",
        flash_attention: bool = False,
        n_ubatch: int | None = None,
        n_ctx: int | None = None,
        vocab_only: bool = False,
    ) -> None:
        self._path = Path(model)
        self._model: Any = None
        if not self._path.is_file():
            raise ReferenceUnavailableError(f"there is no model file {self._path}")
        folder = llama_cpp_build.find_library()
        if folder is None:
            raise ReferenceUnavailableError(
                "llama.cpp is not built",
                remedy=f"python -m reference.llama_cpp_build, or set {llama_cpp_build.LIBRARY_VARIABLE}",
            )
        self._kv, self._flash = kv, flash_attention
        self._n_ubatch, self._n_ctx, self._vocab_only = n_ubatch, n_ctx, vocab_only
        self._n_threads = n_threads or (1 if self._path.stat().st_size < _SMALL_FILE else _usable_cpus())
        self._api = api = _bind(folder)
        self._ggml = Ggml(folder)
        params = api.llama_model_default_params()
        params.n_gpu_layers = 0
        params.vocab_only = vocab_only
        _LOG.clear()
        self._model = api.llama_model_load_from_file(os.fsencode(self._path), params)
        if not self._model:
            why = _LOG.why().replace(str(self._path), self._path.name)
            if "alloc" in why:
                raise MemoryError(why)
            raise ReferenceUnavailableError(
                f"llama.cpp refuses {self._path.name}: {why}",
                remedy="show it a copy of the model in a form that it reads",
            )
        self._vocab = api.llama_model_get_vocab(self._model)
        self._n_vocab = api.llama_vocab_n_tokens(self._vocab)
        self._tensors = self._ggml.tensors(self._path)
        self._info = self._describe()

    @property
    def info(self) -> RunnerInfo:
        """Who this is."""
        return self._info

    def run(self, request: Request) -> Observation:
        """Evaluate, capture and continue; see `Request`. Every request has a fresh context.

        Raises:
            ReferenceUnavailableError: For what llama.cpp cannot do: locked inputs, more tokens than the cache holds.
            ReferenceFailedError: If it does not evaluate the tokens.
        """
        first, rest = self._plan(request)
        capture = Capture(self._ggml)
        capture.on = request.taps
        callback = self._api.ggml_backend_sched_eval_callback(capture.callback) if request.taps else None
        _LOG.clear()
        context = self._context(len(request.ids) + request.n_greedy, len(first), callback)
        try:
            started = time.perf_counter()
            logits = [self._decode(context, first, 0, last_only=request.last_only)]
            prefilled = time.perf_counter()
            for position, token in enumerate(rest, start=len(first)):
                logits.append(self._decode(context, [token], position))
            capture.on = False
            generated = [int(np.argmax(logits[-1][-1]))] if request.n_greedy else []  # of equals the lowest id
            while len(generated) < request.n_greedy:
                logits.append(self._decode(context, generated[-1:], len(request.ids) + len(generated) - 1))
                generated.append(int(np.argmax(logits[-1][-1])))
            decoded = time.perf_counter()
            taps = capture.taps(len(request.ids))
        except ValueError as error:
            raise ReferenceFailedError(f"llama.cpp's intermediates cannot be told apart: {error}") from error
        finally:
            self._api.llama_free(context)
        return Observation(
            ids=(*request.ids, *generated),
            logits=np.concatenate(logits)[-(1 + max(len(generated) - 1, 0)) if request.last_only else 0 :],
            generated=tuple(generated),
            taps=taps,
            seconds={"prefill": prefilled - started, "decode": decoded - prefilled},
        )

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> tuple[int, ...]:
        """Ids of a text. Bytes that are no UTF-8 are given as Python's `surrogateescape` spells them."""
        data = text.encode("utf-8", "surrogateescape")
        room = len(data) + 8
        while True:
            ids = (ctypes.c_int32 * room)()
            n = self._api.llama_tokenize(self._vocab, data, len(data), ids, room, add_special, parse_special)
            if n >= 0:
                return tuple(ids[:n])
            if -n <= room:
                raise ReferenceFailedError(f"llama_tokenize returned {n}")
            room = -n

    def tokenize_many(
        self, texts: Iterable[str], *, add_special: bool = True, parse_special: bool = True
    ) -> list[tuple[int, ...]]:
        """Ids of many texts."""
        return [self.tokenize(text, add_special=add_special, parse_special=parse_special) for text in texts]

    def weights(self, name: str, rows: Rows = None) -> Float32:
        """A tensor, or some of its rows, as ggml decodes it, [rows, columns]; a vector is one row."""
        stored = self._tensors.get(name)
        if stored is None:
            raise ReferenceUnavailableError(f"{self._path.name} has no tensor {name!r}")
        return self._ggml.decode(self._path, stored, rows)

    def close(self) -> None:
        """Free the model."""
        if self._model:
            self._api.llama_model_free(self._model)
        self._model = None

    def _plan(self, request: Request) -> tuple[Sequence[int], Sequence[int]]:
        """The tokens evaluated together, and those that follow one at a time."""
        if self._vocab_only:
            raise ReferenceUnavailableError(
                "only the vocabulary was loaded", remedy="load the model without vocab_only"
            )
        if request.lock:
            raise ReferenceUnavailableError("llama.cpp cannot compute on locked inputs")
        strange = next((i for i in request.ids if not 0 <= i < self._n_vocab), None)
        if not request.ids or strange is not None:
            asked = "no tokens" if strange is None else f"token {strange} of a vocabulary of {self._n_vocab}"
            raise ReferenceUnavailableError(f"llama.cpp was asked to evaluate {asked}")
        needed = len(request.ids) + request.n_greedy
        if self._n_ctx is not None and needed > self._n_ctx:
            raise ReferenceUnavailableError(
                f"{needed} tokens do not fit a cache of {self._n_ctx}", remedy="give a larger n_ctx"
            )
        n = len(request.ids) if request.n_batch is None else min(max(request.n_batch, 1), len(request.ids))
        return request.ids[:n], request.ids[n:]

    def _context(self, n_tokens: int, n_batch: int, callback: object | None) -> int:
        params = self._api.llama_context_default_params()
        params.n_ctx = self._n_ctx or n_tokens
        params.n_batch = n_batch
        params.n_ubatch = min(self._n_ubatch or n_batch, n_batch)
        params.n_threads = params.n_threads_batch = self._n_threads
        params.type_k = params.type_v = _KV_TYPES[self._kv]
        params.flash_attn_type = int(self._flash)
        params.offload_kqv = params.op_offload = False
        if callback is not None:
            params.cb_eval = callback
        context = self._api.llama_init_from_model(self._model, params)
        if not context:
            raise ReferenceFailedError(f"llama.cpp made no context: {_LOG.why()}")
        return int(context)

    def _decode(self, context: int, tokens: Sequence[int], position: int, *, last_only: bool = False) -> Float32:
        """Evaluate tokens at consecutive positions: their logits, [n, n_vocab], or those of the last, [1, n_vocab]."""
        n = len(tokens)
        token = (ctypes.c_int32 * n)(*tokens)
        pos = (ctypes.c_int32 * n)(*range(position, position + n))
        n_row = 1 if last_only else n
        wanted = (ctypes.c_int8 * n)(*[0] * (n - n_row), *[1] * n_row)
        batch = self._api.llama_batch(n_tokens=n, token=token, pos=pos, logits=wanted)  # one sequence, number 0
        code = self._api.llama_decode(context, batch)
        if code != 0:
            raise ReferenceFailedError(f"llama_decode returned {code} for {n} tokens at {position}: {_LOG.why()}")
        rows = np.ctypeslib.as_array(self._api.llama_get_logits(context), shape=(n_row, self._n_vocab))
        return np.array(rows, np.float32)

    def _describe(self) -> RunnerInfo:
        api = self._api
        binding = importlib.import_module("llama_cpp")
        numerics, notes = declared_numerics(self._tensors, kv=self._kv, flash_attention=self._flash)
        arch = ctypes.create_string_buffer(128)
        api.llama_model_meta_val_str(self._model, b"general.architecture", arch, len(arch))
        return RunnerInfo(
            name="llama.cpp",
            family="ggml",
            version=f"llama-cpp-python {binding.__version__}, ggml {self._ggml.version}",
            library_sha256=digest(self._ggml.files),
            obtained="live",
            numerics=numerics,
            model_sha256=file_sha256(self._path),
            detail={
                "arch": arch.value.decode("utf-8", "replace"),
                "n_vocab": str(self._n_vocab),
                "threads": str(self._n_threads),
                "libraries": ", ".join(file.name for file in self._ggml.files),
                "system": api.llama_print_system_info().decode("utf-8", "replace").strip(),
                **notes,
            },
        )


def declared_numerics(
    tensors: Mapping[str, StoredTensor], *, kv: str, flash_attention: bool
) -> tuple[dict[str, str], dict[str, str]]:
    """What llama.cpp rounds, from the types in the file: fields of Numerics, and notes on what they cannot name.

    Args:
        tensors: As ggml sees the file.
        kv: Type of the KV cache. With f16 and no flash attention the query and the probabilities are rounded too.
        flash_attention: Whether it is on.
    """
    types = Counter(stored.type_name for name, stored in tensors.items() if name.endswith(_PROJECTIONS))
    notes = {"weights": ", ".join(f"{name} ×{count}" for name, count in types.most_common())}
    weight = types.most_common(1)[0][0] if types else "f32"
    head_tensor = tensors.get("output.weight") or tensors.get("token_embd.weight")
    head = head_tensor.type_name if head_tensor is not None else "f32"
    if weight not in ACTIVATION_OF:
        notes["activation"] = f"how activations are rounded for {weight} has no name in Numerics"
    if head not in _HEAD_OF:
        notes["head"] = f"the head is {head}: its input is rounded as {ACTIVATION_OF.get(head, 'its type demands')}"
    if flash_attention:
        notes["attention"] = "flash attention rounds in ways that Numerics does not name"
    attention = "f32" if kv == "f32" and not flash_attention else "f16"
    numerics = {
        "activation": ACTIVATION_OF.get(weight, "none"),
        "kv": kv,
        "query": attention,
        "probs": attention,
        "head": _HEAD_OF.get(head, "f32"),
        "rope": "f32_iterated",
    }
    return numerics, notes


def _usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
