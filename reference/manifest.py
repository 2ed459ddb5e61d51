"""The manifest of a recording, checked field by field: a digest says that it is whole, not that it makes sense."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, cast

from reference.runner import FIRST_TAPS, LAST_TAPS, LAYER_TAPS, RunnerInfo, TapKey

_SHA256 = re.compile(r"[0-9a-f]{64}")
_OBTAINED = ("live", "server", "recorded")


class ManifestError(ValueError):
    """A field of a manifest is not what it should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedRun:
    """One computation; arrays by their hashes.

    Attributes:
        ids: What was evaluated.
        n_batch: How many of them together.
        taps_asked: Whether intermediates were.
        generated: The greedy continuation.
        logits: [len(ids) + max(len(generated) − 1, 0), n_vocab].
        taps: By (tap, layer).
    """

    ids: tuple[int, ...]
    n_batch: int
    taps_asked: bool
    generated: tuple[int, ...]
    logits: str
    taps: Mapping[TapKey, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a recording holds.

    Attributes:
        info: Who answered.
        runs: What was computed; at least one.
        texts: (text, whether specials were added, whether they were parsed) → ids.
        weights: Tensor → hash of its values.
    """

    info: RunnerInfo
    runs: tuple[RecordedRun, ...]
    texts: Mapping[tuple[str, bool, bool], tuple[int, ...]]
    weights: Mapping[str, str]


def parse(manifest: Any) -> Manifest:  # noqa: ANN401  # JSON
    """Read a manifest.

    Raises:
        ManifestError: A field is missing, or is not what it should be; it is named with its place.
    """
    runs = _list(_field(manifest, "runs", ""), "runs")
    if not runs:
        raise ManifestError("runs is empty")
    texts = [_text(text, f"texts[{i}]") for i, text in enumerate(_list(_field(manifest, "texts", ""), "texts"))]
    return Manifest(
        info=_info(_field(manifest, "runner", "")),
        runs=tuple(_run(run, f"runs[{i}]") for i, run in enumerate(runs)),
        texts=dict(texts),
        weights={
            name: _sha256(value, f"weights.{name:.60}")
            for name, value in _object(_field(manifest, "weights", ""), "weights").items()
        },
    )


def _info(runner: Any) -> RunnerInfo:  # noqa: ANN401  # JSON
    known = {f.name for f in fields(RunnerInfo)}
    if odd := sorted(_object(runner, "runner").keys() - known):
        raise ManifestError(f"runner.{odd[0]:.60} is no field")
    said = {name: _string(_field(runner, name, "runner."), f"runner.{name}") for name in ("name", "family", "version")}
    for name in ("name", "family"):
        if not said[name]:
            raise ManifestError(f"runner.{name} is empty")
    obtained = _field(runner, "obtained", "runner.")
    if obtained not in _OBTAINED:
        raise ManifestError(f"runner.obtained is none of {', '.join(_OBTAINED)}")
    library = _field(runner, "library_sha256", "runner.")
    return RunnerInfo(
        **said,
        library_sha256=library if library == "" else _sha256(library, "runner.library_sha256"),
        obtained=cast("Literal['live', 'server', 'recorded']", obtained),
        numerics=_strings(_field(runner, "numerics", "runner."), "runner.numerics"),
        model_sha256=_sha256(_field(runner, "model_sha256", "runner."), "runner.model_sha256"),
        detail=_strings(runner.get("detail", {}), "runner.detail"),
        log_probabilities=_flag(runner.get("log_probabilities", False), "runner.log_probabilities"),
    )


def _run(run: Any, path: str) -> RecordedRun:  # noqa: ANN401  # JSON
    ids = _ids(_field(run, "ids", f"{path}."), f"{path}.ids")
    n_batch = _field(run, "n_batch", f"{path}.")
    if not ids or type(n_batch) is not int or not 1 <= n_batch <= len(ids):
        raise ManifestError(f"{path}.n_batch is no number of its {len(ids)} ids")
    taps: dict[TapKey, str] = {}
    for i, tap in enumerate(_list(_field(run, "taps", f"{path}."), f"{path}.taps")):
        key, value = _tap(tap, f"{path}.taps[{i}]")
        if key in taps:
            raise ManifestError(f"{path}.taps[{i}] is there twice")
        taps[key] = value
    return RecordedRun(
        ids=ids,
        n_batch=n_batch,
        taps_asked=_flag(_field(run, "taps_asked", f"{path}."), f"{path}.taps_asked"),
        generated=_ids(_field(run, "generated", f"{path}."), f"{path}.generated"),
        logits=_sha256(_field(run, "logits", f"{path}."), f"{path}.logits"),
        taps=taps,
    )


def _tap(tap: Any, path: str) -> tuple[TapKey, str]:  # noqa: ANN401  # JSON
    if len(_list(tap, path)) != 3:
        raise ManifestError(f"{path} is no tap, layer and hash")
    name, layer, value = tap
    inside = name in LAYER_TAPS
    if not (inside or name in (*FIRST_TAPS, *LAST_TAPS)) or type(layer) is not int or (layer >= 0) != inside:
        raise ManifestError(f"{path} is no tap of a layer, or outside them of layer -1")
    return (name, max(layer, -1)), _sha256(value, path)


def _text(text: Any, path: str) -> tuple[tuple[str, bool, bool], tuple[int, ...]]:  # noqa: ANN401  # JSON
    if len(_list(text, path)) != 4:
        raise ManifestError(f"{path} is no text, two flags and ids")
    said, special, parsed, ids = text
    return (_string(said, path), _flag(special, path), _flag(parsed, path)), _ids(ids, path)


def _field(of: Any, name: str, path: str) -> Any:  # noqa: ANN401  # JSON
    if name not in _object(of, path.rstrip(".") or "it"):
        raise ManifestError(f"{path}{name} is missing")
    return of[name]


def _object(value: Any, path: str) -> dict[str, Any]:  # noqa: ANN401  # JSON
    if not isinstance(value, dict):
        raise ManifestError(f"{path} is no object")
    return value


def _list(value: Any, path: str) -> list[Any]:  # noqa: ANN401  # JSON
    if not isinstance(value, list):
        raise ManifestError(f"{path} is no list")
    return value


def _strings(value: Any, path: str) -> dict[str, str]:  # noqa: ANN401  # JSON
    return {name: _string(one, f"{path}.{name:.60}") for name, one in _object(value, path).items()}


def _string(value: Any, path: str) -> str:  # noqa: ANN401  # JSON
    if not isinstance(value, str):
        raise ManifestError(f"{path} is no text")
    return value


def _flag(value: Any, path: str) -> bool:  # noqa: ANN401  # JSON
    if not isinstance(value, bool):
        raise ManifestError(f"{path} is neither true nor false")
    return value


def _ids(value: Any, path: str) -> tuple[int, ...]:  # noqa: ANN401  # JSON
    for one in _list(value, path):
        if type(one) is not int or one < 0:
            raise ManifestError(f"{path} is no list of ids")
    return tuple(value)


def _sha256(value: Any, path: str) -> str:  # noqa: ANN401  # JSON
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ManifestError(f"{path} is no sha256")
    return value
