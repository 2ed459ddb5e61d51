"""What the fuzzer starts from: small valid files of every kind, some of the malformed ones, and a dictionary."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import fuzz_files
import gguf_bytes
import small_models

from bitnet.gguf import GGMLType, ValueType


def seeds(target: str = "model") -> dict[str, bytes]:
    """Valid files by name, smallest first."""
    if target == "files":
        return dict(sorted(fuzz_files.sound().items(), key=lambda item: len(item[1])))
    found = {"container": gguf_bytes.small(), "empty": gguf_bytes.file()}
    for name, arguments in {
        "f16": ("llama", GGMLType.F16, 16),
        "f32": ("bitnet", GGMLType.F32, 16),
        "bf16": ("bitnet-b1.58", GGMLType.BF16, 16),
        "q8_0": ("llama", GGMLType.Q8_0, 32),
        "i2_s": ("bitnet-b1.58", GGMLType.I2_S, 128),
    }.items():
        found[name] = small_models.model_bytes(*small_models.parts(*arguments, tokenizer="tiny"))
    keys, tensors = small_models.parts(tokenizer="tiny")
    bare = {key: value for key, value in keys.items() if not key.startswith("tokenizer")}
    found["no tokenizer"] = small_models.model_bytes(bare, tensors)
    found["tq2_0"] = small_models.model_bytes(*small_models.parts("llama", GGMLType.TQ2_0, 256, tokenizer="tiny"))
    found["byte pairs"] = small_models.model_bytes(small_models.parts()[0], {})
    found["pieces"] = small_models.model_bytes(small_models.parts(tokenizer="llama")[0], {})
    few = {"general.architecture": "llama", "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["a", "b", "ab"]}
    found["three tokens"] = small_models.model_bytes(few, {})
    return found


def dictionary(target: str = "model") -> list[bytes]:
    """Byte strings that mean something in a file."""
    if target == "files":
        return _json_words()
    keys, tensors = small_models.parts("bitnet")
    words = [word.encode() for word in (*keys, *tensors, "split.no", "split.count", "general.alignment")]
    words += [struct.pack("<I", number) for number in (*ValueType, *GGMLType)]
    words += [struct.pack("<Q", n) for n in (2**64 - 1, 2**63 - 1, 2**63, 2**61, 2**32, 1 << 24)]
    words += [struct.pack("<f", x) for x in (float("nan"), float("inf"), -1.0, 0.0)]
    return words


def _json_words() -> list[bytes]:
    """Every key and text of the JSON files, and values that mean trouble."""
    words = {word for raw in fuzz_files.sound().values() for word in re.findall(rb'"[A-Za-z_.]{3,40}"', raw)}
    values = (b"null", b"true", b"-1", b"0", b"1e999", b"NaN", b"18446744073709551616", b"{}", b"[]", b'""', b"\\ud800")
    rope = ("rope_scaling", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    others = tuple(f'"{word}"'.encode() for word in (*rope, "head_dim", "attention_bias", "modules_to_not_convert"))
    dtypes = (b'"F32"', b'"BF16"', b'"F16"', b'"I8"', b'"U8"', b'"F8_E4M3"', b'"autobitlinear"', b'"silu"', b'"llama3"')
    return [*sorted(words), *values, *dtypes, *others]


def write_corpus(folder: Path, target: str = "model") -> None:
    """One file for each seed, and `dictionary.txt` beside the folder, as libFuzzer reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in seeds(target).items():
        (folder / name.replace(" ", "-")).write_bytes(raw)
    lines = ['"' + "".join(f"\\x{byte:02x}" for byte in word) + '"' for word in dictionary(target)]
    (folder.parent / "dictionary.txt").write_text("\n".join(lines) + "\n")
