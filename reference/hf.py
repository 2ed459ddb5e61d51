"""transformers, live: the weights of any GGUF file in a `BitNetForCausalLM` or `LlamaForCausalLM` in memory.

The one engine outside this project and ggml that computes relu² and BitNet's int8 activations. Nothing is read from the
network or written to disk: configuration and weights come from the file, by `reference.contract` and `hf_weights.py`.
Everything is float32, but for attention, which torch computes in float64 unless told otherwise: float32 scores around
40 leave probabilities open by 2e-6, and that is no property of a model. `process.py` runs it in a child, where torch is
imported and stays.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bitnet import gguf as container
from reference import hf_weights
from reference.contract import HyperParameters, hyper_parameters, weight_names
from reference.ggml import digest
from reference.hf_taps import Taps
from reference.hf_weights import ACTIVATIONS, LinearClass
from reference.runner import (
    Float32,
    Observation,
    ReferenceUnavailableError,
    Request,
    Rows,
    RunnerInfo,
    TapKey,
    span,
)
from reference.semantics import CONTRACT

REMEDY = 'pip install "bitnet-crossval[hf]"'
_NAMES = {"bitlinear": "BitLinear", "autobitlinear": "AutoBitLinear", "linear": "Linear"}
#: Fewer weights than this are evaluated by one thread: two that wait for each other are slower.
_SMALL = 50_000_000


def installed() -> bool:
    """Whether torch and transformers can be imported; neither is."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers"))


class Transformers:
    """A model in transformers.

    Args:
        model: GGUF file.
        linear_class: Which of transformers' two layers computes ternary projections.
        n_threads: Of torch; None: one for a small model, else torch's own choice.
        attention: `float64`: torch's scaled_dot_product_attention in float64, rounded to float32; `eager`: that of
            transformers, in float32.

    Raises:
        ReferenceUnavailableError: torch or transformers is missing, or the model has no form there.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *,
        linear_class: LinearClass = "bitlinear",
        n_threads: int | None = None,
        attention: Literal["float64", "eager"] = "float64",
    ) -> None:
        self._torch, self._transformers = _imported()
        self._gguf = container.read(model)
        tensors = self._gguf.tensors
        self.hyper = hyper_parameters(self._gguf.metadata, tensors, CONTRACT)
        weight_names(self.hyper, {name: info.shape for name, info in tensors.items()})
        if n_threads is not None or sum(int(np.prod(info.shape)) for info in tensors.values()) < _SMALL:
            self._torch.set_num_threads(n_threads or 1)
        self._family = "BitNet" if self.hyper.sub_norms else "Llama"
        lower = self._family.lower()
        self._code: Any = importlib.import_module(f"transformers.models.{lower}.modeling_{lower}")
        self._scales: dict[str, np.float32] = {}
        self._kinds: set[str] = set()
        self._orders = hf_weights.orders(self.hyper)
        self._attention = attention
        with self._torch.inference_mode():
            self._model = self._made(linear_class)
        self.info = self._describe(linear_class)

    def run(self, request: Request) -> Observation:
        """Evaluate, capture, lock and continue; see `Request`. Every request has a fresh cache.

        Raises:
            ReferenceUnavailableError: It was asked for no tokens, or for some that do not exist.
        """
        n, n_vocab = len(request.ids), self._model.config.vocab_size
        if not n or not all(0 <= i < n_vocab for i in request.ids):
            raise ReferenceUnavailableError(f"transformers was asked to evaluate {list(request.ids)[:8]} of {n_vocab}")
        first = n if request.n_batch is None else min(max(request.n_batch, 1), n)
        cache = self._transformers.DynamicCache()
        taps = Taps(self._torch, self._model, self._code, self._orders)
        taps.on = request.taps
        started = time.perf_counter()
        with self._torch.inference_mode(), taps.hooked(), self._attending():
            rows = [self._step(taps, request.ids[:first], 0, cache, request.lock)]
            prefilled = time.perf_counter()
            for at in range(first, n):  # the next step needs the cache of this one
                rows += [self._step(taps, request.ids[at : at + 1], at, cache, request.lock)]
            taps.on = False
            generated = [int(rows[-1][-1].argmax())] if request.n_greedy else []
            while len(generated) < request.n_greedy:
                rows.append(self._step(taps, generated[-1:], n + len(generated) - 1, cache, None))
                generated.append(int(rows[-1][-1].argmax()))  # of equals the lowest id
        return Observation(
            ids=(*request.ids, *generated),
            logits=np.concatenate(rows)[n - 1 if request.last_only else 0 :],
            generated=tuple(generated),
            taps=taps.recorded(),
            seconds={"prefill": prefilled - started, "decode": time.perf_counter() - prefilled},
        )

    @contextmanager
    def _attending(self) -> Iterator[None]:
        """Attention as chosen."""
        eager = self._code.eager_attention_forward
        if self._attention == "float64":
            self._code.eager_attention_forward = self._float64
        try:
            yield
        finally:
            self._code.eager_attention_forward = eager

    def _float64(self, module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any) -> Any:  # noqa: ANN401  # stands for a function of transformers
        """`eager_attention_forward`, by torch's own kernel and in float64."""
        torch = self._torch
        q, k, v = (x.to(torch.float64) for x in (query, key, value))  # [1, heads, T, head_dim]
        k, v = (x.repeat_interleave(module.num_key_value_groups, dim=1) for x in (k, v))
        mask = None if attention_mask is None else attention_mask.to(torch.float64)
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=options["scaling"])
        return out.to(query.dtype).transpose(1, 2).contiguous(), None

    def _step(
        self,
        taps: Taps,
        ids: Any,  # noqa: ANN401  # a list or a tuple
        start: int,
        cache: Any,  # noqa: ANN401  # transformers' cache
        lock: Mapping[TapKey, Float32] | None,
    ) -> Float32:
        taps.begin(start, lock)
        out = self._model(self._torch.tensor([list(ids)]), past_key_values=cache, use_cache=True)
        return np.array(out.logits[0].numpy(), np.float32)

    def tokenize(self, text: str, **_: bool) -> tuple[int, ...]:
        """The tokenizer of a GGUF file is not transformers' own: always a `ReferenceUnavailableError`."""
        raise ReferenceUnavailableError(
            f"transformers was given weights, not a tokenizer for {text[:20]!r}", remedy="give it token ids"
        )

    def weights(self, name: str, rows: Rows = None) -> Float32:
        """A tensor, or some of its rows, as the model in memory holds it, [rows, columns], in the order of the file.

        Its `.scale` is included.

        Raises:
            ReferenceUnavailableError: Nothing there stands for it.
        """
        if name not in self._gguf.tensors:
            raise ReferenceUnavailableError(f"the file has no tensor {name!r}")
        module_name = hf_weights.module_name(name)
        module = self._model.get_submodule(module_name)
        values = module.weight.detach().numpy()
        if module_name in self._scales:
            scale = self._scales[module_name]
            values = hf_weights.unpack(values) if values.dtype == np.uint8 else values
            values = values.astype(np.float32) * scale
        order = self._orders.get(name.split(".")[2] if name.startswith("blk.") else "")
        if order is not None:
            there = np.empty_like(values)
            there[order] = values
            values = there
        return np.array(values.reshape(-1, values.shape[-1])[span(rows)], np.float32)

    def close(self) -> None:
        """Forget the model."""
        self._model = None

    # ---- the model ----------------------------------------------------------------------------------------------

    def _made(self, linear_class: LinearClass) -> Any:  # noqa: ANN401  # transformers' class
        """The model with the file's weights: built without storage, then given every tensor."""
        torch, hyper = self._torch, self.hyper
        config = getattr(self._transformers, f"{self._family}Config")(
            **_settings(hyper, self._gguf, self._transformers)
        )
        with torch.device("meta"):
            model = getattr(self._transformers, f"{self._family}ForCausalLM")(config)
        layers: Any = importlib.import_module("transformers.integrations.bitnet")
        state: dict[str, Any] = {}
        for name, made in hf_weights.projections(self._gguf, hyper, linear_class):
            self._kinds.add(made.kind)
            state[f"{name}.weight"] = torch.from_numpy(made.weight)
            if made.weight_scale is None:
                continue
            state[f"{name}.weight_scale"] = torch.from_numpy(made.weight_scale)
            self._scales[name] = made.scale
            old = model.get_submodule(name)
            of = layers.BitLinear if made.kind == "bitlinear" else layers.AutoBitLinear
            sizes = {"in_features": old.in_features, "out_features": old.out_features}
            model.set_submodule(name, of(**sizes, bias=False, device="meta", dtype=torch.float32))
        if len(self._kinds) > 1:
            raise ReferenceUnavailableError("some projections are ternary and some are not: no one numerics names that")
        n_q = hyper.n_head * hyper.head_dim
        for layer in model.model.layers if hyper.sub_norms and n_q != hyper.n_embd else ():
            norm = layer.self_attn.attn_sub_norm  # transformers makes it as wide as the model, whatever the heads are
            layer.self_attn.attn_sub_norm = type(norm)(n_q, eps=norm.variance_epsilon).to("meta")
        state |= {name: torch.from_numpy(values) for name, values in hf_weights.others(self._gguf, hyper)}
        model.load_state_dict(state, assign=True)  # strict: a tensor left over or left out raises
        rotary = model.model.rotary_emb
        model.model.rotary_emb = type(rotary)(config=config)  # its frequencies are no weights, and were made on "meta"
        return model.eval().requires_grad_(requires_grad=False)

    def _describe(self, linear_class: LinearClass) -> RunnerInfo:
        torch, transformers = self._torch, self._transformers
        ternary = bool(self._scales)
        kind = linear_class if ternary else "linear"
        integration: Any = importlib.import_module("transformers.integrations.bitnet")
        return RunnerInfo(
            name="transformers",
            family="transformers",
            version=f"transformers {transformers.__version__}, torch {torch.__version__}",
            library_sha256=digest((*_libraries(torch), Path(self._code.__file__), Path(integration.__file__))),
            obtained="live",
            numerics={
                "activation": "int8_token_reciprocal" if ternary else "none",
                "kv": "f32",
                "query": "f32",
                "probs": "f32",
                "head": "f32",
                "rope": "f32",
            },
            model_sha256=self._gguf.sha256(),
            detail={
                "class": f"{self._family}ForCausalLM",
                "linear class": _NAMES[kind],
                "attention": self._attention,
                "threads": str(torch.get_num_threads()),
                "capability": str(torch.backends.cpu.get_cpu_capability()),
            },
        )


def _imported() -> tuple[Any, Any]:
    """Both packages, with compilation and every download off."""
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # read when torch is imported: it would compile the quantiser
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        return importlib.import_module("torch"), importlib.import_module("transformers")
    except ImportError as error:
        missing = error.name or "torch"
        raise ReferenceUnavailableError(
            f"transformers needs {missing}, which is not installed", remedy=REMEDY
        ) from error


def _libraries(torch: Any) -> tuple[Path, ...]:  # noqa: ANN401  # the module
    """The compiled code of torch that computes on a CPU."""
    folder = Path(torch.__file__).parent / "lib"
    found = sorted(path for path in folder.glob("libtorch_cpu.*") if path.suffix in {".so", ".dylib"})
    return tuple(found) or (Path(torch._C.__file__),)


def _settings(hyper: HyperParameters, gguf: container.GGUF, transformers: Any) -> dict[str, Any]:  # noqa: ANN401  # the module
    """Arguments of the configuration."""
    values: dict[str, Any] = {
        "vocab_size": gguf.tensors["token_embd.weight"].shape[0],
        "hidden_size": hyper.n_embd,
        "intermediate_size": hyper.n_ff,
        "num_hidden_layers": hyper.n_layer,
        "num_attention_heads": hyper.n_head,
        "num_key_value_heads": hyper.n_head_kv,
        "head_dim": hyper.head_dim,
        "hidden_act": ACTIVATIONS[hyper.activation],
        "rms_norm_eps": float(hyper.rms_eps),
        "max_position_embeddings": int(gguf.metadata.get(f"{hyper.arch}.context_length", 4096)),
        "tie_word_embeddings": hyper.head == "token_embd.weight",
        "attn_implementation": "eager",
        "pad_token_id": None,
        "bos_token_id": None,
        "eos_token_id": None,
    }
    if int(transformers.__version__.partition(".")[0]) < 5:
        return values | {"rope_theta": hyper.rope_theta}
    return values | {"rope_parameters": {"rope_type": "default", "rope_theta": hyper.rope_theta}}
