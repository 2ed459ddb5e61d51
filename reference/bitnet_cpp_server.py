"""bitnet.cpp, live, through the llama-server of a build: what is left where our interface cannot be compiled.

A server tells the log-probabilities of the next token and nothing else: logits up to a constant of each row, ids, and
no operations, no weights. Each row is a request of its own, the tokens up to its position evaluated together from
nothing; single tokens are evaluated on what the server keeps of the request before, and it must say that it did so.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from bitnet import gguf as container
from reference import bitnet_cpp_build
from reference.bitnet_cpp import quantiser
from reference.ggml import digest, file_sha256, mapped_libraries
from reference.llama_cpp import ACTIVATION_OF
from reference.recorded import BITNET_CPP_NUMERICS
from reference.runner import (
    LOG_PROBABILITY_ERROR,
    Float32,
    Observation,
    ReferenceUnavailableError,
    Request,
    Rows,
    RunnerInfo,
)
from reference.server_answers import LIFTS, NonsenseError, Pieces, by_id, by_piece, entry_of, joined
from reference.server_process import ANSWER_SECONDS, START_SECONDS, ServerProcess

SERVER = "llama-server"
#: Tokens of context, where the model would have more.
_MOST_CONTEXT = 4096
_SMALL_FILE = 64 << 20
#: Bytes of an answer for each token of the vocabulary, and beside them.
_PER_TOKEN, _BESIDE = 2048, 1 << 22
#: Options that only some builds have, and what they are set to: nothing but plain evaluation.
_OPTIONAL = {"--no-warmup": (), "--no-webui": (), "--cache-ram": ("0",), "--fit": ("off",), "--no-context-shift": ()}


class BitnetCppServer:
    """A model in a llama-server.

    Args:
        model: GGUF file.
        binary: The program.
        n_threads: Threads; None: one for a small file, else as many as this process may use.
        start_seconds, answer_seconds: As of `ServerProcess`.
        why: Why a server is asked, for people.

    Raises:
        GGUFError: The model cannot be read.
        ReferenceUnavailableError: It does not start, refuses the model, or tells probabilities in no usable form.
        ReferenceFailedError: It dies, hangs or answers nonsense.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        binary: str | os.PathLike[str],
        *,
        n_threads: int | None = None,
        start_seconds: float = START_SECONDS,
        answer_seconds: float = ANSWER_SECONDS,
        why: str = "",
    ) -> None:
        self._path, self._binary, self._why = Path(model), Path(binary), why
        if not self._path.is_file():
            raise ReferenceUnavailableError(f"there is no model file {self._path}")
        self._types, self._arch, self._n_vocab, n_ctx = _read(self._path)
        self._n_threads = n_threads or (1 if self._path.stat().st_size < _SMALL_FILE else os.cpu_count() or 1)
        room = str(min(n_ctx, _MOST_CONTEXT) + 8)  # it wants a place for the token that it chooses
        arguments = ("-m", str(self._path), "-c", room, "-np", "1", "-t", str(self._n_threads), *_options(self._binary))
        self._pieces: Pieces | None = None
        self._server = ServerProcess(
            self._binary, arguments, start_seconds=start_seconds, answer_seconds=answer_seconds
        )
        try:
            self.info = self._describe()
            self._row((0,), keep=False, evaluated=1)  # whether it tells probabilities at all
        except BaseException:
            self._server.close()
            raise

    def run(self, request: Request) -> Observation:
        """Evaluate and continue; see `Request`. Logits are log-probabilities.

        Raises:
            ReferenceUnavailableError: For what it cannot do: intermediates, locked inputs, no tokens or unknown ones.
            ReferenceFailedError: It dies, hangs or answers nonsense.
        """
        n = len(request.ids)
        if request.taps or request.lock:
            raise ReferenceUnavailableError("a llama-server shows no operations: it tells probabilities alone")
        if not n or not all(0 <= i < self._n_vocab for i in request.ids):
            raise ReferenceUnavailableError(
                f"{SERVER} was asked to evaluate {list(request.ids)[:8]} of {self._n_vocab}"
            )
        first = n if request.n_batch is None else min(max(request.n_batch, 1), n)
        start = n - 1 if request.last_only else 0
        began = time.perf_counter()
        rows = [self._row(request.ids[: i + 1], keep=False, evaluated=i + 1) for i in range(start, first - 1)]
        last = self._row(request.ids[:first], keep=n > first or request.n_greedy > 1, evaluated=first)
        rows += [last] if first - 1 >= start else []
        prefilled = time.perf_counter()
        singles = [self._row(request.ids[: i + 1], keep=True, evaluated=1) for i in range(first, n)]
        rows += singles[max(start - first, 0) :]
        ids = request.ids
        for _ in range(request.n_greedy - 1):
            ids = (*ids, int(rows[-1].argmax()))  # of equals the lowest id
            rows.append(self._row(ids, keep=True, evaluated=1))
        ids = (*ids, int(rows[-1].argmax())) if request.n_greedy else ids
        return Observation(
            ids=ids,
            logits=np.stack(rows),
            generated=ids[n:],
            seconds={"prefill": prefilled - began, "decode": time.perf_counter() - prefilled},
        )

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> tuple[int, ...]:
        """Ids of a text. Special tokens are always parsed: servers cannot be asked otherwise."""
        if not parse_special:
            raise ReferenceUnavailableError("a llama-server always parses special tokens")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ReferenceUnavailableError(
                f"a llama-server cannot be sent bytes that are no UTF-8: {error}"
            ) from error
        answer = self._server.ask("/tokenize", {"content": text, "add_special": add_special}, most=64 << 20)
        ids = answer.get("tokens") if isinstance(answer, dict) else None
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < self._n_vocab for i in ids):
            self._server.nonsense("no list of ids")
        return tuple(ids)

    def weights(self, name: str, rows: Rows = None) -> Float32:  # noqa: ARG002  # the protocol's
        """A server shows no weights: always a `ReferenceUnavailableError`."""
        raise ReferenceUnavailableError(f"a llama-server does not show how it decodes {name}")

    def close(self) -> None:
        """End the server."""
        self._server.close()

    # ---- the server -----------------------------------------------------------------------------------------------

    def _row(self, ids: Sequence[int], *, keep: bool, evaluated: int) -> Float32:
        """Log-probabilities after some ids, [n_vocab].

        Args:
            ids: Of the whole text.
            keep: Whether it may use what it kept of the request before, and keeps this one.
            evaluated: Tokens that it must have evaluated now.
        """
        try:
            if self._pieces is not None and len(self._pieces.rounds) > 1:
                return self._row_by_pieces(ids, self._pieces, keep=keep, evaluated=evaluated)
            entry = entry_of(self._complete(ids, keep=keep, evaluated=evaluated))
            if entry is not None and "top_logprobs" in entry:
                return by_id(entry, self._n_vocab)
            self._pieces = pieces = self._pieces or self._read_pieces()
            if entry is not None and len(pieces.rounds) == 1:
                return joined([by_piece(entry, pieces, pieces.rounds[0])])
            return self._row_by_pieces(ids, pieces, keep=keep, evaluated=evaluated)
        except NonsenseError as error:
            self._server.nonsense(str(error))

    def _row_by_pieces(self, ids: Sequence[int], pieces: Pieces, *, keep: bool, evaluated: int) -> Float32:
        """The same of an older server: tokens with one text in turn, and another one favoured if it must be."""
        for lift in (0.0, *LIFTS):
            favoured = [[pieces.favoured, lift]] if lift else []
            rounds = []
            for banned in pieces.rounds:
                bias: list[list[Any]] = [*([i, False] for i in sorted(banned)), *favoured]
                entry = entry_of(self._complete(ids, keep=keep, evaluated=evaluated, bias=bias))
                if entry is None:
                    break
                rounds.append(by_piece(entry, pieces, banned))
            else:
                return joined(rounds, lifted=pieces.favoured, lift=lift)
        raise ReferenceUnavailableError(
            "this build of llama-server lists no probabilities where it chooses a part of a character"
        )

    def _complete(
        self, ids: Sequence[int], *, keep: bool, evaluated: int, bias: Sequence[Sequence[Any]] = ()
    ) -> dict[str, Any]:
        """One token after some, with the probabilities of all, if it evaluated for it what was wanted."""
        if keep and evaluated == len(ids) > 1:  # from nothing, and to be kept: what it kept must begin otherwise
            self._complete(((ids[0] + 1) % self._n_vocab,), keep=True, evaluated=1)
        content = {
            "prompt": list(ids),
            "n_predict": 1,
            "temperature": 0,
            "n_probs": self._n_vocab,
            "cache_prompt": keep,
            "repeat_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "logit_bias": list(bias),
        }
        answer = self._server.ask("/completion", content, most=_PER_TOKEN * self._n_vocab + _BESIDE)
        if not isinstance(answer, dict) or answer.get("tokens_evaluated") != len(ids) or answer.get("truncated"):
            n = answer.get("tokens_evaluated") if isinstance(answer, dict) else None
            self._server.nonsense(f"it evaluated {n!r} tokens, and was given {len(ids)}")
        timings = answer.get("timings")
        said = timings.get("prompt_n") if isinstance(timings, dict) else None
        if said != evaluated:
            raise ReferenceUnavailableError(
                f"this build of llama-server says that it evaluated {said!r} tokens at once, and not {evaluated}"
            )
        return answer

    def _read_pieces(self) -> Pieces:
        """The texts of all tokens, as an older server shows them."""
        asked = {"content": list(range(self._n_vocab)), "with_pieces": True}
        answer = self._server.ask("/tokenize", asked, most=_PER_TOKEN * self._n_vocab + _BESIDE)
        listed = answer.get("tokens") if isinstance(answer, dict) else None
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            raise ReferenceUnavailableError(
                "this build of llama-server tells tokens by their texts, and not which text is whose",
                remedy="build one of 2025 or later, or install a C++ compiler for the shim",
            )
        if [one.get("id") for one in listed] != list(range(self._n_vocab)):
            self._server.nonsense("the texts of other tokens")
        return Pieces(shown=tuple(self._shown(i, one.get("piece")) for i, one in enumerate(listed)))

    def _shown(self, i: int, piece: object) -> str:
        if isinstance(piece, str):
            return piece
        if not isinstance(piece, list) or not all(type(b) is int and 0 <= b < 256 for b in piece):
            self._server.nonsense(f"{piece!r} is no text of a token")
        if len(piece) == 1:
            return f"byte: \\x{piece[0]:x}"
        answer = self._server.ask("/detokenize", {"tokens": [i]})  # shown with its own marks for what is no UTF-8
        text = answer.get("content") if isinstance(answer, dict) else None
        if not isinstance(text, str):
            self._server.nonsense("no text of a token")
        return text

    def _describe(self) -> RunnerInfo:
        libraries = mapped_libraries(self._binary.parent, pid=self._server.pid)
        fork = any(b"i2_s\0" in path.read_bytes() for path in (self._binary, *libraries))
        return RunnerInfo(
            name="bitnet.cpp" if fork else "llama.cpp",
            family="ggml",
            version=bitnet_cpp_build.version_of(self._root()),
            library_sha256=digest(libraries or (self._binary,)),
            obtained="server",
            numerics=self._numerics(libraries, fork=fork),
            model_sha256=file_sha256(self._path),
            log_probabilities=True,
            detail={
                "arch": self._arch,
                "threads": str(self._n_threads),
                "libraries": ", ".join(path.name for path in libraries) or "inside the program",
                "program": f"{self._binary.name} {file_sha256(self._binary)}",
                "chosen": f"the server of a build: {self._why}" if self._why else "the server of a build",
                "logits": f"log-probabilities: logits up to a constant of each row, to {LOG_PROBABILITY_ERROR:.0e}",
            },
        )

    def _root(self) -> Path:
        """The checkout that the program lies in, if any."""
        return next((p for p in self._binary.resolve().parents if (p / ".git").exists()), self._binary.parent)

    def _numerics(self, libraries: Sequence[Path], *, fork: bool) -> dict[str, str]:
        """How it rounds: as bitnet.cpp does, and with one row at a time in the head, whatever the batch."""
        kind = self._types.get("blk.0.attn_q.weight", "f32")
        activation = ACTIVATION_OF.get(kind, "none")
        if kind in {"i2_s", "tl1", "tl2"}:
            activation = "int8_token"  # and more exactly where its libraries can be asked
            with suppress(OSError):
                activation = quantiser(libraries)
        head = self._types.get("output.weight") or self._types.get("token_embd.weight", "f32")
        attention = {name: BITNET_CPP_NUMERICS[name] for name in ("kv", "query", "probs")}
        attention |= {} if fork else {"probs": "f16"}
        rounded = head if head in {"f16", "bf16"} else "f32"
        return {"activation": activation, **attention, "head": rounded, "rope": "f32_iterated"}


def find_server(root: Path) -> Path:
    """The newest llama-server of a tree.

    Raises:
        ReferenceUnavailableError: There is none.
    """
    found = [p for p in bitnet_cpp_build.files(root) if p.name == SERVER and os.access(p, os.X_OK)]
    if not found:
        raise ReferenceUnavailableError(
            f"there is no {SERVER} in {root}", remedy=f"build it there: cmake --build build --target {SERVER}"
        )
    return max(found, key=lambda path: path.stat().st_mtime)


def _options(binary: Path) -> tuple[str, ...]:
    """Arguments that this build knows, so that it does nothing but evaluate."""
    text = ""
    with suppress(OSError, subprocess.TimeoutExpired):
        done = subprocess.run([str(binary), "--help"], capture_output=True, check=False, timeout=60)  # noqa: S603  # the tree's own program
        text = (done.stdout + done.stderr).decode("utf-8", "replace")
    known = set(re.findall(r"--[a-z][\w-]*", text))
    chosen = [word for name, values in _OPTIONAL.items() if name in known for word in (name, *values)]
    if re.search(r"--flash-attn +\[?\(?<?\{?(on|off|auto)", text):  # older builds have a switch, and it is off
        chosen += ["--flash-attn", "off"]
    return tuple(chosen)


def _read(path: Path) -> tuple[dict[str, str], str, int, int]:
    """Types of the tensors by name, architecture, vocabulary and context of a model."""
    file = container.read(path)
    try:
        types = {name: info.type.name.lower() for name, info in file.tensors.items()}
        arch = str(file.metadata.get("general.architecture", ""))
        n_vocab = int(file.tensors["token_embd.weight"].shape[0])
        return types, arch, n_vocab, int(file.metadata.get(f"{arch}.context_length", _MOST_CONTEXT))
    except (KeyError, TypeError, ValueError) as error:
        raise ReferenceUnavailableError(
            f"{path.name} is no model that a server could be asked about: it lacks {error}"
        ) from error
