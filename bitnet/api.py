"""`bitnet.load(path)` and what it returns."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import psutil

from bitnet.architecture import read_config
from bitnet.config import GenerationConfig, ModelConfig, Numerics
from bitnet.discovery import Discovery, discover
from bitnet.errors import UsageError
from bitnet.generate import Decoder, Generation
from bitnet.gguf import GGUF, GGMLType
from bitnet.hf import open_model
from bitnet.kernels import kernels
from bitnet.linear import Backend, Float32
from bitnet.model import Network, network
from bitnet.tokenizer import Tokenizer
from bitnet.weights import Weights, read_weights

if TYPE_CHECKING:
    from bitnet.chat import ChatTemplate
    from bitnet.validate import WeightReport

_TERNARY = (GGMLType.I2_S, GGMLType.TQ1_0, GGMLType.TQ2_0, GGMLType.TL1, GGMLType.TL2)


class Model:
    """A model that is loaded and ready.

    Attributes:
        gguf: The file.
        config: Its hyper-parameters.
        weights: Its tensors, packed.
        network: The graph on a backend.
        notices: What its user should know about how it was read.
        tokenizer_path: A tokenizer that takes the place of the file's own, or None.
    """

    def __init__(
        self,
        gguf: GGUF,
        config: ModelConfig,
        weights: Weights,
        net: Network,
        notices: Sequence[str] = (),
        tokenizer_path: str | os.PathLike[str] | None = None,
    ) -> None:
        self.gguf = gguf
        self.config = config
        self.weights = weights
        self.network = net
        self.notices = tuple(notices)
        self.tokenizer_path = tokenizer_path
        self._discovery: Discovery | None = None

    @property
    def discovery(self) -> Discovery:
        """The tokenizer with where it was found, and how. Raises `TokenizerError` if none fits the model."""
        if self._discovery is None:
            self._discovery = discover(self.gguf, path=self.tokenizer_path, n_vocab=self.config.n_vocab)
        return self._discovery

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer. Raises `TokenizerError` if none fits the model."""
        return self.discovery.tokenizer

    def logits(self, ids: Sequence[int]) -> Float32:
        """Logits [len(ids), n_vocab] f32 after each token of a sequence that starts at position 0."""
        return self.network.forward(ids, self.network.new_cache(len(ids)))

    def encode(self, prompt: str | Sequence[int] | Sequence[Mapping[str, str]]) -> tuple[int, ...]:
        """Ids of a text, of chat messages (``[{"role": "user", "content": …}]``), or of ids themselves."""
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt)
        elif prompt and isinstance(prompt[0], Mapping):
            t = self.tokenizer
            ids = t.encode(self.chat_prompt(prompt), add_special=False)  # type: ignore[arg-type]  # mappings
            if t.add_bos and t.bos_id is not None and ids[:1] != (t.bos_id,):
                ids = (t.bos_id, *ids)  # the template leaves it to the tokenizer
        else:
            ids = tuple(int(i) for i in prompt)  # type: ignore[arg-type]  # ids
        if not ids:
            raise UsageError("the prompt has no tokens", remedy="give some text; this model adds no BOS of its own")
        return ids

    def chat_prompt(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Messages rendered by the model's chat template, ready for the answer."""
        from bitnet.chat import render  # jinja2 costs a tenth of a second, and few callers chat

        t = self.tokenizer
        bos, eos = (t.token_text(i) if i is not None else "" for i in (t.bos_id, t.eos_id))
        return render(self.chat_template.text, messages, bos_token=bos, eos_token=eos)

    @property
    def chat_template(self) -> ChatTemplate:
        """The template and where it comes from. Raises `TokenizerError` if there is none."""
        from bitnet.chat import template_of

        return template_of(self.gguf, self.discovery.chat_template)

    def decoder(
        self,
        prompt: str | Sequence[int] | Sequence[Mapping[str, str]],
        config: GenerationConfig | None = None,
        **settings: object,
    ) -> Decoder:
        """A continuation to iterate for text as it comes; its `result` is the `Generation` afterwards."""
        chosen = config or GenerationConfig()
        if settings:
            chosen = chosen.with_changes(**settings)
        return Decoder(self.network, self.tokenizer, self.encode(prompt), chosen)

    def stream(
        self,
        prompt: str | Sequence[int] | Sequence[Mapping[str, str]],
        config: GenerationConfig | None = None,
        **settings: object,
    ) -> Iterator[str]:
        """Pieces of the continuation as they come; `settings` are fields of `GenerationConfig`."""
        yield from self.decoder(prompt, config, **settings)

    def generate(
        self,
        prompt: str | Sequence[int] | Sequence[Mapping[str, str]],
        config: GenerationConfig | None = None,
        **settings: object,
    ) -> Generation:
        """The whole continuation; `settings` are fields of `GenerationConfig`."""
        decoder = self.decoder(prompt, config, **settings)
        for _ in decoder:
            pass
        assert decoder.result is not None
        return decoder.result

    def validate_weights(self) -> WeightReport:
        """Count and examine every tensor: trits, scales, norms, and what is odd about them."""
        from bitnet.validate import validate_weights  # few callers ask

        return validate_weights(self.gguf, self.config)

    def __repr__(self) -> str:
        c = self.config
        return (
            f"<bitnet.Model {self.gguf.path.name}: {c.arch}, {c.n_layer} layers, n_embd {c.n_embd}, "
            f"{c.activation}, {self.weights.n_bytes / 1e6:.1f} MB a token>"
        )


def default_threads() -> int:
    """BITNET_NUM_THREADS, or the physical cores this process may use. Raises `UsageError` for nonsense."""
    asked = os.environ.get("BITNET_NUM_THREADS", "").strip()
    if asked:
        if not asked.isdecimal() or not 1 <= int(asked) <= 1024:
            raise UsageError(f"is {asked!r}", where="BITNET_NUM_THREADS", remedy="a number of threads, 1 to 1024")
        return int(asked)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable, psutil.cpu_count(logical=False) or usable))


def default_numerics(gguf: GGUF, weights: Weights) -> Numerics:
    """BitNet's int8 activations for weights that are ternary, in type or in value; none for other float models."""
    first = next(weights.projections())
    if gguf.tensors[first.name].type in _TERNARY or _is_ternary_valued(first):
        return Numerics()
    return Numerics(activation="none")


def _is_ternary_valued(matrix: object) -> bool:
    """Whether a float matrix holds only −s, 0, +s: a ternary one carried in a float type."""
    data = getattr(matrix, "data", None)
    if data is None or data.dtype == np.int8:
        return False
    magnitude = data & np.array(0x7FFF, data.dtype) if data.dtype != np.float32 else np.abs(data)
    return len(np.unique(magnitude[magnitude != 0])) == 1


def load(
    path: str | os.PathLike[str] | None = None,
    *,
    device: str | None = None,
    n_threads: int | None = None,
    numerics: Numerics | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
) -> Model:
    """Open a GGUF file, or the folder of a Hugging Face checkpoint.

    Args:
        path: The file or folder; default BITNET_GGUF.
        device: `cpu` (compiled kernels) or `plain` (numpy); default BITNET_DEVICE, else `cpu`.
        n_threads: Default BITNET_NUM_THREADS, else the physical cores. Results do not depend on it.
        numerics: How activations and the cache are rounded; default BitNet's own for ternary weights.
        tokenizer: A tokenizer.json, tokenizer.model or GGUF in place of the file's own; default what `discovery` finds.

    Raises:
        UsageError: No path, or a device or thread count without meaning.
        ModelFileError: The file is damaged, incomplete, or of an unknown architecture.
    """
    path = path or os.environ.get("BITNET_GGUF")
    if not path:
        raise UsageError("no model is named", remedy="give a path, or set BITNET_GGUF")
    device = device or os.environ.get("BITNET_DEVICE") or "cpu"
    kernels(device)
    if n_threads is not None and n_threads < 1:
        raise UsageError(f"n_threads is {n_threads}", remedy="1 or more")
    gguf = open_model(path)
    config, notices = read_config(gguf)
    weights = read_weights(gguf, config)
    backend = Backend(device, n_threads or default_threads())
    chosen = numerics or default_numerics(gguf, weights)
    net = network(gguf, config, weights, backend, chosen)
    return Model(gguf, config, weights, net, (*gguf.notices, *notices, *weights.notices), tokenizer)
