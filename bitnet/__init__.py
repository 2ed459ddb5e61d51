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
    from bitnet.api import Model, load
    from bitnet.config import GenerationConfig, ModelConfig, Numerics
    from bitnet.errors import BitNetError
    from bitnet.generate import Generation

__version__ = "0.1.0"

__all__ = ["BitNetError", "Generation", "GenerationConfig", "Model", "ModelConfig", "Numerics", "__version__", "load"]

_HOME = {
    "BitNetError": "bitnet.errors",
    "Generation": "bitnet.generate",
    "GenerationConfig": "bitnet.config",
    "Model": "bitnet.api",
    "ModelConfig": "bitnet.config",
    "Numerics": "bitnet.config",
    "load": "bitnet.api",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  # whatever the module holds
    if name not in _HOME:
        raise AttributeError(f"module 'bitnet' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
