"""BitNet b1.58 inference: ternary weights, int8 activations, the same bits on every thread count.

    import bitnet
    model = bitnet.load("model.gguf")
    print(model.generate("The cat", max_new_tokens=40).text)

Importing this imports neither numba nor numpy; the names below load what they need when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitnet.api import load
    from bitnet.bitnet_model import BitNetModel
    from bitnet.cache_pool import CacheStats
    from bitnet.config import ModelConfig, Numerics
    from bitnet.errors import (
        BitNetError,
        ContextLengthError,
        DownloadError,
        GGUFError,
        ModelFileError,
        ResourceLimitError,
        TokenizerError,
        UsageError,
    )
    from bitnet.generate import Decoder, Generation
    from bitnet.generation_config import GenerationConfig
    from bitnet.info import ModelInfo
    from bitnet.machine import DeviceInfo, devices
    from bitnet.metrics import Metrics
    from bitnet.session import Session

__version__ = "0.1.0"

__all__ = [
    "BitNetError",
    "BitNetModel",
    "CacheStats",
    "ContextLengthError",
    "Decoder",
    "DeviceInfo",
    "DownloadError",
    "GGUFError",
    "Generation",
    "GenerationConfig",
    "Metrics",
    "ModelConfig",
    "ModelFileError",
    "ModelInfo",
    "Numerics",
    "ResourceLimitError",
    "Session",
    "TokenizerError",
    "UsageError",
    "__version__",
    "devices",
    "load",
]

_HOME = {
    "BitNetError": "bitnet.errors",
    "BitNetModel": "bitnet.bitnet_model",
    "CacheStats": "bitnet.cache_pool",
    "ContextLengthError": "bitnet.errors",
    "Decoder": "bitnet.generate",
    "DeviceInfo": "bitnet.machine",
    "DownloadError": "bitnet.errors",
    "GGUFError": "bitnet.errors",
    "Generation": "bitnet.generate",
    "GenerationConfig": "bitnet.generation_config",
    "Metrics": "bitnet.metrics",
    "ModelConfig": "bitnet.config",
    "ModelFileError": "bitnet.errors",
    "ModelInfo": "bitnet.info",
    "Numerics": "bitnet.config",
    "ResourceLimitError": "bitnet.errors",
    "Session": "bitnet.session",
    "TokenizerError": "bitnet.errors",
    "UsageError": "bitnet.errors",
    "devices": "bitnet.machine",
    "load": "bitnet.api",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  # whatever the module holds
    if name not in _HOME:
        raise AttributeError(f"module 'bitnet' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
