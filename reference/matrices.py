"""A model's weights, decoded when they are asked for and shared between readings that decode them alike.

Two readings of one file differ in few tensors; the rest is decoded once. With `n_layer_kept` no more layers than that
are held at a time, so that a model of billions of weights is walked through in the memory of one layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from bitnet.gguf import GGUF
from reference.decode import Matrix, decode
from reference.semantics import Semantics

#: How many readings' worth of tensors are held; a search for causes tries dozens.
_READINGS = 3


class Matrices(Mapping[str, Matrix]):
    """Weights by tensor name.

    Args:
        gguf: The open container.
        names: Tensors that the model needs.
        semantics: How they are understood.
        wide: Keep float64 values.
        n_layer_kept: Layers held at a time; None for all.
        shared: Weights of another reading of the same file.
    """

    def __init__(
        self,
        gguf: GGUF,
        names: Sequence[str],
        semantics: Semantics,
        *,
        wide: bool,
        n_layer_kept: int | None = None,
        shared: Matrices | None = None,
    ) -> None:
        self._gguf, self._names, self._semantics = gguf, frozenset(names), semantics
        self._wide, self._kept = wide, n_layer_kept
        self._cache: dict[tuple[Any, ...], Matrix] = {} if shared is None else shared._cache

    def __getitem__(self, name: str) -> Matrix:
        if name not in self._names:
            raise KeyError(name)
        key = (name, *self._reading(name))
        if key not in self._cache:
            self._make_room(name)
            self._cache[key] = decode(self._gguf, name, self._semantics, wide=self._wide)
            while len(self._cache) > _READINGS * len(self._names):  # the first reading stays, the oldest of others goes
                del self._cache[next(islice(self._cache, len(self._names), None))]
        return self._cache[key]

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._names))

    def __len__(self) -> int:
        return len(self._names)

    def load(self) -> None:
        """Decode everything now, so that what cannot be decoded is said at once."""
        for name in self:
            self[name]

    def _reading(self, name: str) -> tuple[Any, ...]:
        """What decides how a tensor is decoded."""
        s = self._semantics
        changed = tuple(change for change in s.weights if change.tensor == name)
        if self._gguf.tensors[name].type.name in ("F32", "F16", "BF16", "Q8_0"):
            return (changed,)
        return s.unpack_order, s.code_map, s.reternarised, changed

    def _make_room(self, name: str) -> None:
        if self._kept is None or not name.startswith("blk."):
            return
        held: dict[str, None] = {key[0].split(".")[1]: None for key in self._cache if key[0].startswith("blk.")}
        layer = name.split(".")[1]
        if layer in held or len(held) < self._kept:
            return
        oldest = next(iter(held))
        for key in [key for key in self._cache if key[0].startswith(f"blk.{oldest}.")]:
            del self._cache[key]
        self._gguf.release()  # the pages that it was decoded from
