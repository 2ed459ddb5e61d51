"""Files that no loader may accept although their container is sound: one small model, and one thing wrong with it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import gguf_bytes
import numpy as np
import small_models

from bitnet.gguf import GGMLType, TensorData, TypedArray, ValueType

Q, NORM = "blk.0.attn_q.weight", "blk.0.attn_norm.weight"
NAN, INFINITY = float("nan"), float("inf")
I2_S = ("bitnet-b1.58", GGMLType.I2_S, 128)
T = "tokenizer.ggml."
ABSENT = object()


def model(*arguments: Any, keys=None, tensors=None, drop=(), tokenizer: str = "gpt2") -> bytes:
    """A model with some keys and tensors changed.

    Args:
        arguments: Of `small_models.parts`.
        keys: Values by key; `ABSENT` removes one. A key that begins with a dot is of the architecture.
        tensors: By name: a `TensorData`, float32 values, or a function of the old bytes.
        drop: Names of tensors to leave out.
    """
    metadata, stored = small_models.parts(*arguments, tokenizer=tokenizer)
    arch = metadata["general.architecture"]
    for key, value in (keys or {}).items():
        metadata[arch + key if key.startswith(".") else key] = value
    for name, change in (tensors or {}).items():
        if isinstance(change, TensorData):
            stored[name] = change
        elif callable(change):
            old = stored[name]
            stored[name] = TensorData(name=name, shape=old.shape, type=old.type, data=change(np.array(old.data)))
        else:
            values = np.asarray(change, np.float32)
            stored[name] = TensorData(name=name, shape=values.shape, type=GGMLType.F32, data=values)
    kept = {name: tensor for name, tensor in stored.items() if name not in drop}
    return small_models.model_bytes({k: v for k, v in metadata.items() if v is not ABSENT}, kept)


def of_type(name: str, shape: tuple[int, ...], type_: GGMLType, data: bytes | int) -> TensorData:
    """A tensor of any type; `data` is its bytes, or how many zeros."""
    return TensorData(name=name, shape=shape, type=type_, data=bytes(data) if isinstance(data, int) else data)


def at(offset: int, value: bytes) -> Callable[[np.ndarray], np.ndarray]:
    """A change of the bytes of a tensor; a negative offset counts from its end."""

    def change(raw: np.ndarray) -> np.ndarray:
        flat = raw.reshape(-1).view(np.uint8)
        begin = offset % len(flat)
        flat[begin : begin + len(value)] = np.frombuffer(value, np.uint8)
        return flat

    return change


def filled(byte: int) -> Callable[[np.ndarray], np.ndarray]:
    """All codes of an I2_S tensor alike; its scale stays."""

    def change(raw: np.ndarray) -> np.ndarray:
        flat = raw.reshape(-1)
        flat[:-32] = byte
        return flat

    return change


def f32(x: float) -> bytes:
    return struct.pack("<f", x)


def hyper(key: str, value: Any) -> bytes:
    return model(keys={f".{key}": value})


def vocabulary(key: str, value: Any, tokenizer: str = "gpt2") -> bytes:
    return model(keys={T + key: value}, tokenizer=tokenizer)


def tokens(*more: str | bytes, tokenizer: str = "gpt2") -> TypedArray:
    """The tokens, the last ones replaced."""
    kept = small_models.vocabulary(tokenizer)[T + "tokens"]
    return TypedArray(ValueType.STRING, [*kept[: len(kept) - len(more)], *more])


N = small_models.N_VOCAB

#: What a loader refuses → the files that break it: name → (bytes, words of the message).
REFUSED: dict[str, dict[str, tuple[bytes, str]]] = {
    "architecture unknown": {
        "no architecture": (model(keys={"general.architecture": ABSENT}), "architecture None"),
        "architecture gpt2": (model(keys={"general.architecture": "gpt2"}), "'gpt2' is not one"),
        "architecture a number": (model(keys={"general.architecture": 7}), "architecture 7"),
        "a container without a model": (gguf_bytes.file(), "architecture None"),
    },
    "required hyper-parameter missing": {
        f"no {key}": (hyper(key, ABSENT), "missing")
        for key in (
            *("block_count", "embedding_length", "feed_forward_length"),
            *("attention.head_count", "attention.layer_norm_rms_epsilon"),
        )
    },
    "hyper-parameter of wrong type": {
        "heads as text": (hyper("attention.head_count", "1"), "not a number"),
        "layers as float": (hyper("block_count", 1.0), "not a number"),
        "width as bool": (hyper("embedding_length", np.True_), "not a number"),
        "heads as array": (hyper("attention.head_count", [1, 1]), "not a number"),
        "epsilon as text": (hyper("attention.layer_norm_rms_epsilon", "1e-5"), "not a number"),
        "activation unknown": (hyper("hidden_activation", "gelu"), "'gelu' is unknown"),
        "scaling a number": (hyper("rope.scaling.type", 1), "str is due"),
    },
    "hyper-parameter zero or negative": {
        "no layers": (hyper("block_count", 0), "must be positive"),
        "negative width": (hyper("embedding_length", (ValueType.INT32, -16)), "must be positive"),
        "no heads": (hyper("attention.head_count", 0), "must be positive"),
        "1025 layers": (hyper("block_count", 1025), "more than any model"),
        "2^32-1 layers": (hyper("block_count", 2**32 - 1), "more than any model"),
    },
    "heads not divisible": {
        "3 heads, 2 for keys": (
            model("llama", GGMLType.F16, 48, keys={".attention.head_count_kv": 2}),
            "3 heads do not divide by 2",
        ),
        "more heads for keys": (hyper("attention.head_count_kv", 2), "1 heads do not divide by 2"),
        "odd heads": (hyper("rope.dimension_count", 24), "head_dim 24 is not a multiple"),
        "values of another width": (hyper("attention.value_length", 32), "differs from key_length"),
        "rotary of another width": (hyper("attention.key_length", 32), "differs from head_dim"),
        "width not whole": (hyper("embedding_length", 24), "24 is not a multiple of 16"),
        "feed-forward width not whole": (hyper("feed_forward_length", 8), "8 is not a multiple of 16"),
    },
    "rope or epsilon not positive": {
        **{f"rope_theta {x}": (hyper("rope.freq_base", x), "must be positive") for x in (0.0, -1.0, NAN, INFINITY)},
        **{
            f"epsilon {x}": (hyper("attention.layer_norm_rms_epsilon", x), "must be positive")
            for x in (0.0, -1e-5, NAN)
        },
        "scaling not supported": (hyper("rope.scaling.type", "yarn"), "'yarn' is not supported"),
    },
    "context absurd": {
        "context 0": (hyper("context_length", 0), "must be positive"),
        "context 2^24+1": (hyper("context_length", 2**24 + 1), "more than any model"),
        "context 2^64-1": (hyper("context_length", (ValueType.UINT64, 2**64 - 1)), "more than any model"),
    },
    "shapes against hyper-parameters": {
        "q too tall": (model(tensors={Q: np.ones((32, 16))}), r"shape \[32, 16\]"),
        "q of one dimension": (model(tensors={Q: np.ones(16)}), r"shape \[16\]"),
        "q of three": (model(tensors={Q: np.ones((16, 16, 1))}), r"shape \[16, 16, 1\]"),
        "embedding too narrow": (model(tensors={"token_embd.weight": np.ones((N, 32))}), r"ask for \[270, 16\]"),
        "norm too short": (model(tensors={NORM: np.ones(15)}), r"shape \[15\]"),
        "norm a matrix": (model(tensors={NORM: np.ones((1, 16))}), r"shape \[1, 16\]"),
        "output norm too long": (model(tensors={"output_norm.weight": np.ones(17)}), r"shape \[17\]"),
        "width of another model": (hyper("embedding_length", 32), "ask for"),
        "a scale of two": (model(tensors={"blk.0.attn_q.scale": np.ones(2)}), r"shape \[2\]"),
        "norm of integers": (model(tensors={NORM: of_type(NORM, (16,), GGMLType.I8, 16)}), "I8"),
        "weights of integers, all zero": (model(tensors={Q: of_type(Q, (16, 16), GGMLType.I32, 1024)}), "all zero"),
    },
    "required tensor missing": {
        f"no {name}": (model("bitnet", drop=[name]), f"tensor {name} is missing")
        for name in (
            *("token_embd.weight", "output_norm.weight", Q, NORM),
            *("blk.0.ffn_down.weight", "blk.0.attn_sub_norm.weight", "blk.0.ffn_sub_norm.weight"),
        )
    }
    | {"keys without tensors": (small_models.model_bytes(small_models.parts()[0], {}), "token_embd.weight is missing")},
    "a tensor nobody consumes": {
        "a bias": (model(tensors={"blk.0.attn_q.bias": np.ones(16)}), "attn_q.bias"),
        "a layer too many": (model(tensors={"blk.1.attn_norm.weight": np.ones(16)}), "blk.1.attn_norm"),
        "sub-norms under llama": (model(tensors={"blk.0.attn_sub_norm.weight": np.ones(16)}), "attn_sub_norm"),
        "a scale of a norm": (model(tensors={"output_norm.scale": np.ones(1)}), "output_norm.scale"),
    },
    "norm or scale not finite": {
        "norm NaN": (model(tensors={NORM: at(0, f32(NAN))}), "NaN or infinity"),
        "norm infinite": (model(tensors={"output_norm.weight": at(-4, f32(INFINITY))}), "NaN or infinity"),
        "scale NaN": (model(tensors={"blk.0.attn_q.scale": [NAN]}), "NaN or infinity"),
        "scale infinite": (model(tensors={"blk.0.attn_q.scale": [-INFINITY]}), "NaN or infinity"),
        "I2_S scale NaN": (model(*I2_S, tensors={Q: at(-32, f32(NAN))}), "scale"),
        "I2_S scale infinite": (model(*I2_S, tensors={Q: at(-32, f32(INFINITY))}), "scale"),
        "block scale NaN": (model("llama", GGMLType.TQ2_0, 256, tensors={Q: at(64, b"\xff\x7f")}), "scale"),
        "scales overflow": (
            model(*I2_S, tensors={Q: at(-32, f32(1e30)), "blk.0.attn_q.scale": [1e30]}),
            "not finite",
        ),
    },
    "code 3 in I2_S": {
        "one code 3": (model(*I2_S, tensors={Q: at(7, b"\xff")}), "code 3"),
        "all codes 3": (model(*I2_S, tensors={Q: filled(0xFF)}), "code 3"),
    },
    "all-zero or constant matrix": {
        "all 0": (model(*I2_S, tensors={Q: filled(0x55)}), "all zero"),
        "all +1": (model(*I2_S, tensors={Q: filled(0xAA)}), "constant"),
        "all -1": (model(*I2_S, tensors={Q: filled(0x00)}), "constant"),
        "scale 0": (model(*I2_S, tensors={Q: at(-32, bytes(4))}), "scale is 0"),
        "scale beside it 0": (model(tensors={"blk.0.attn_q.scale": [0.0]}), "scale is 0"),
        "floats all 0": (model(tensors={Q: np.zeros((16, 16))}), "all zero"),
        "floats all 1": (model(tensors={Q: np.ones((16, 16))}), "constant"),
        "embedding all 0": (model(tensors={"token_embd.weight": np.zeros((N, 16))}), "token_embd.weight is all zero"),
        "head all 0": (model(tensors={"output.weight": np.zeros((N, 16))}), "output.weight is all zero"),
        "Q8_0 all 0": (
            model("llama", GGMLType.Q8_0, 32, tensors={Q: of_type(Q, (32, 32), GGMLType.Q8_0, 32 * 34)}),
            "all zero",
        ),
    },
    "tokenizer missing or of wrong type": {
        "no tokenizer": (vocabulary("model", ABSENT), "model is missing"),
        "tokenizer unknown": (vocabulary("model", "rwkv"), "'rwkv', which is not supported"),
        "tokenizer a number": (vocabulary("model", 1), "not a string"),
        "no tokens": (vocabulary("tokens", ABSENT), "tokens is missing"),
        "tokens empty": (vocabulary("tokens", TypedArray(ValueType.STRING, [])), "tokens is empty"),
        "tokens numbers": (vocabulary("tokens", [1, 2, 3]), "not an array of strings"),
        "tokens one text": (vocabulary("tokens", "abc"), "not an array of strings"),
        "a token twice": (vocabulary("tokens", tokens("A")), "twice"),
        "special token not UTF-8": (vocabulary("tokens", tokens(b"<|\xff")), "not UTF-8"),
        "rules unknown": (vocabulary("pre", "no-such-rules"), "rules are not known"),
        "BOS flag a number": (vocabulary("add_bos_token", 1), "not a boolean"),
        "BOS asked for, none named": (vocabulary("bos_token_id", ABSENT), "bos_token_id is missing"),
    },
    "tokens, scores and types of different lengths": {
        "scores too few": (vocabulary("scores", np.zeros(N - 1, np.float32)), "269 entries, but there are 270"),
        "scores too many": (vocabulary("scores", np.zeros(N + 1, np.float32)), "271 entries"),
        "types too few": (vocabulary("token_type", np.ones(3, np.int32)), "3 entries"),
        "types as text": (vocabulary("token_type", ["a"] * N), "not an array of numbers"),
        "a score NaN": (vocabulary("scores", np.full(N, NAN, np.float32), "llama"), "not a number"),
        "more tokens than rows": (
            model(tensors={"token_embd.weight": np.arange(16.0 * 100).reshape(100, 16)}),
            "270 tokens, the embedding 100 rows",
        ),
    },
    "special id outside the vocabulary": {
        "BOS outside": (vocabulary("bos_token_id", N), "outside the vocabulary"),
        "EOS 2^32-1": (vocabulary("eos_token_id", 2**32 - 1), "outside the vocabulary"),
        "EOT outside": (vocabulary("eot_token_id", 128_009), "outside the vocabulary"),
        "BOS negative": (vocabulary("bos_token_id", (ValueType.INT32, -1)), "outside the vocabulary"),
        "BOS as text": (vocabulary("bos_token_id", "<s>"), "not an integer"),
        "EOS as bool": (vocabulary("eos_token_id", np.False_), "not an integer"),
    },
    "merges naming unknown tokens": {
        "no merges": (vocabulary("merges", ABSENT), "merges is"),
        "unknown part": (vocabulary("merges", ["t h", "zz z"]), "names the token 'zz'"),
        "unknown result": (vocabulary("merges", ["e e"]), "names the token 'ee'"),
        "one part": (vocabulary("merges", ["th"]), "not two parts"),
        "not UTF-8": (
            model(
                keys={T + "merges": TypedArray(ValueType.STRING, [b"\xff a"]), T + "tokens": tokens(b"\xff", b"\xffa")}
            ),
            "not UTF-8",
        ),
        "merges numbers": (vocabulary("merges", [1]), "not an array of strings"),
    },
    "template too large": {
        "template of 262,145 characters": (
            model(keys={"tokenizer.chat_template": "a" * (2**18 + 1)}),
            "at most 262144",
        ),
        "template no Jinja": (model(keys={"tokenizer.chat_template": "{% for %}"}), "not valid Jinja"),
        "template without end": (
            model(keys={"tokenizer.chat_template": "{% for i in range(10**9) %}{% endfor %}"}),
            "power|steps",
        ),
        "template into the interpreter": (
            model(keys={"tokenizer.chat_template": "{{ ''.__class__.__mro__[1].__subclasses__()[0]() }}"}),
            "fails",
        ),
        "template that makes too much": (
            model(keys={"tokenizer.chat_template": "{{ 'a' * 99999999 }}"}),
            "makes more than",
        ),
    },
}
