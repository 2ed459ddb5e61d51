"""A reference that is not here: outputs recorded from a real bitnet.cpp build, replayed and never computed.

A recording is a folder with a `manifest.json` (build identity, hashes of the models, prompts) and arrays: the logits
of every prompt and its greedy continuation, evaluated once with the prompt as a batch and once token by token, and the
graph's nodes for one batched prompt. This runner answers what was recorded and says so; it refuses everything else.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reference.runner import Observation, ReferenceUnavailableError, Request, Rows, RunnerInfo, TapKey

Float32 = NDArray[np.float32]

#: bitnet.cpp's rounding points, confirmed by the oracle to 2e-7 of the largest value at every recorded node.
BITNET_CPP_NUMERICS = {
    "activation": "int8_token",
    "kv": "f16",
    "query": "f16",
    "probs": "f16_decode",
    "head": "f16_decode",
    "rope": "f32_iterated",
}

#: Node of the recorded graph → tap. Qcur and Kcur were captured after rotary; they, as every node, keep the last value
#: written under their name. Nodes before rotary and the attention of the sub-norm graphs were not recorded.
_NODES = {
    "attn_norm": "attn_norm",
    "Qcur": "q_rope",
    "Kcur": "k_rope",
    "Vcur": "v",
    "attn_sub_norm": "attn_sub_norm",
    "ffn_inp": "ffn_inp",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "ffn_gate",
    "ffn_up": "ffn_up",
    "ffn_sub_norm": "ffn_sub_norm",
    "l_out": "l_out",
    "result_norm": "result_norm",
    "result_output": "result_output",
}
#: The same name means another thing in the graph with sub-norms and in the graph of arch llama.
_SUB_NORM_NODES = {**_NODES, "attn_o_out": "attn_out", "ffn_out": "ffn_act", "ffn_down": "ffn_down"}
_LLAMA_NODES = {**_NODES, "kqv_merged_cont": "kqv_out", "kqv_out": "attn_out", "ffn_out": "ffn_down"}
#: Nodes without a tap: read them with `Recorded.node`.
_UNTAPPED = frozenset({"kq_soft_max_ext"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedPrompt:
    """What there is for one prompt.

    Attributes:
        name: Stem of its file, as `b158_a.p1`.
        prompt_ids: Evaluated in one batch (or singly).
        generated_ids: The greedy continuation of the batched prompt.
        taps: Whether the intermediates of the batched prompt were recorded.
    """

    name: str
    prompt_ids: tuple[int, ...]
    generated_ids: tuple[int, ...]
    taps: bool

    @property
    def ids(self) -> tuple[int, ...]:
        """Prompt and continuation."""
        return self.prompt_ids + self.generated_ids


class Recorded:
    """A `Runner` that replays a recording.

    Args:
        model: The GGUF file that the recording was made from, byte for byte.
        recording: Its folder.

    Raises:
        ReferenceUnavailableError: No such recording, or the model is not one of those recorded.
    """

    def __init__(self, model: str | Path, recording: str | Path) -> None:
        self._folder = Path(recording)
        manifest = _json(self._folder / "manifest.json")
        sha256 = _sha256(Path(model))
        try:
            self._read(manifest, str(model), sha256)
        except KeyError as error:
            raise ReferenceUnavailableError(f"{self._folder / 'manifest.json'} lacks {error}") from error

    def _read(self, manifest: Mapping[str, Any], model: str, sha256: str) -> None:
        build: Mapping[str, str] = manifest["build"]
        by_hash = {entry["sha256"]: (name, entry) for name, entry in manifest["models"].items()}
        if sha256 not in by_hash:
            same_name = [e["sha256"] for e in manifest["models"].values() if e["file"] == Path(model).name]
            was = f"; the recorded {Path(model).name} was {same_name[0]}" if same_name else ""
            raise ReferenceUnavailableError(
                f"nothing was recorded from {Path(model).name} (sha256 {sha256}){was}",
                remedy=f"recorded models: {', '.join(e['file'] for e in manifest['models'].values())}",
            )
        self._model, entry = by_hash[sha256]
        self._node_taps = _LLAMA_NODES if entry["arch"] == "llama" else _SUB_NORM_NODES
        self._nodes_of = str(entry["nodes_file"]).removesuffix(".nodes.npz")
        self._prompts = tuple(
            RecordedPrompt(
                name=(stem := str(p["file"]).removesuffix(".npz")),
                prompt_ids=tuple(p["prompt_ids"]),
                generated_ids=tuple(p["generated_ids"]),
                taps=stem == self._nodes_of,
            )
            for p in entry["prompts"]
        )
        self.info = RunnerInfo(
            name="bitnet.cpp",
            family="ggml",
            version=build["reference"].split(" (")[0].removeprefix("bitnet.cpp ").removeprefix("as vendored in "),
            library_sha256=build["libllama_sha256"],
            obtained="recorded",
            numerics=dict(BITNET_CPP_NUMERICS),
            model_sha256=sha256,
            detail=dict(build),
        )

    def prompts(self) -> tuple[RecordedPrompt, ...]:
        """What was recorded for this model."""
        return self._prompts

    def run(self, request: Request) -> Observation:
        """Replay.

        The ids must be a recorded prompt, or that and a beginning of its continuation. `n_batch` 1 replays the token
        by token evaluation (there any beginning of prompt and continuation will do), `n_batch` = length of the
        prompt replays the batch. Greedy tokens are read off the recorded logits. There is nothing to time.

        Raises:
            ReferenceUnavailableError: This was not recorded; the message says what was.
        """
        if request.lock:
            raise ReferenceUnavailableError("a recording cannot compute on locked inputs", remedy="lock the oracle")
        n, n_batch = len(request.ids), len(request.ids) if request.n_batch is None else request.n_batch
        for prompt in self._prompts:
            fits = prompt.ids[:n] == request.ids
            if fits and n_batch == len(prompt.prompt_ids) <= n:
                return self._replay(prompt, "logits", request)
            if fits and n and n_batch == 1:
                return self._replay(prompt, "logits_single", request)
        raise ReferenceUnavailableError(
            f"{n} ids in a batch of {n_batch} were not recorded", remedy=f"recorded: {self._listed()}"
        )

    def _replay(self, prompt: RecordedPrompt, array: str, request: Request) -> Observation:
        if request.taps and not (prompt.taps and array == "logits" and request.ids == prompt.prompt_ids):
            raise ReferenceUnavailableError(
                "the intermediates of these ids were not recorded",
                remedy=f"they were for {self._nodes_of} alone: its prompt in one batch",
            )
        logits: Float32 = self._load(f"{prompt.name}.npz")[array]
        n = len(request.ids)
        ids = list(request.ids)
        for _ in range(request.n_greedy):
            if len(ids) > len(logits) or tuple(ids) != prompt.ids[: len(ids)]:
                raise ReferenceUnavailableError(
                    f"{request.n_greedy} greedy tokens after {n} ids were not recorded, only {len(ids) - n}",
                    remedy=f"recorded: {self._listed()}",
                )
            ids.append(int(logits[len(ids) - 1].argmax()))
        return Observation(
            ids=tuple(ids),
            logits=logits[n - 1 if request.last_only else 0 : n + max(request.n_greedy - 1, 0)].copy(),
            generated=tuple(ids[n:]),
            taps=self._taps() if request.taps else {},
        )

    def _taps(self) -> dict[TapKey, Float32]:
        n_token = next(len(p.prompt_ids) for p in self._prompts if p.taps)
        taps: dict[TapKey, Float32] = {}
        for name, value in self._load(f"{self._nodes_of}.nodes.npz").items():
            node, _, layer = name.partition("-")
            if node in _UNTAPPED:
                continue
            if node not in self._node_taps:
                raise ReferenceUnavailableError(f"the recording holds a node {name!r} that no tap stands for")
            taps[self._node_taps[node], int(layer) if layer else -1] = value.reshape(n_token, -1)
        return taps

    def node(self, name: str) -> Float32:
        """A node of the recorded graph under its own name and shape, e.g. `kq_soft_max_ext-0` [n_head, T, n_kv_padded].

        Raises:
            ReferenceUnavailableError: No such node was recorded.
        """
        nodes = self._load(f"{self._nodes_of}.nodes.npz")
        if name not in nodes:
            raise ReferenceUnavailableError(f"no node {name!r} was recorded", remedy=f"recorded: {', '.join(nodes)}")
        return nodes[name]

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> tuple[int, ...]:
        """Recorded ids of a recorded text, with BOS and special tokens parsed; anything else is unavailable."""
        path = self._folder / f"tokenize_{self._model}.json"
        if not path.is_file():
            raise ReferenceUnavailableError(f"no tokens were recorded for {self._model}")
        cases = {case["text"]: case["ids_with_bos_parse_special"] for case in _json(path)["cases"]}
        if text not in cases or not (add_special and parse_special):
            raise ReferenceUnavailableError(
                f"the tokens of {text[:60]!r} were not recorded",
                remedy=f"{len(cases)} texts were, with special tokens added and parsed",
            )
        return tuple(cases[text])

    def texts(self) -> tuple[str, ...]:
        """The texts whose tokens were recorded."""
        path = self._folder / f"tokenize_{self._model}.json"
        return tuple(case["text"] for case in _json(path)["cases"]) if path.is_file() else ()

    def weights(self, name: str, rows: Rows = None) -> Float32:  # noqa: ARG002  # the protocol's
        """Decoded weights were not recorded: always a `ReferenceUnavailableError`."""
        raise ReferenceUnavailableError(f"the decoded {name} was not recorded")

    def close(self) -> None:
        """Nothing is held."""

    def _listed(self) -> str:
        prompts = ", ".join(f"{p.name} ({len(p.prompt_ids)} + {len(p.generated_ids)} ids)" for p in self._prompts)
        return f"{prompts}, each with the prompt in one batch or one token at a time"

    def _load(self, file: str) -> dict[str, NDArray[Any]]:
        try:
            with np.load(self._folder / file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise ReferenceUnavailableError(f"{self._folder / file} cannot be read: {error}") from error


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ReferenceUnavailableError(
            f"{path} cannot be read: {error}", remedy="name the folder of a recording"
        ) from error
    if not isinstance(content, dict):
        raise ReferenceUnavailableError(f"{path} is not a JSON object")
    return content


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ReferenceUnavailableError(f"{path} cannot be read: {error.strerror}") from error
