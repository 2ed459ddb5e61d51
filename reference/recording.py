"""Any reference, recorded into one portable file, and replayed from it where the reference is not installed.

`Recorder` stands before a runner and keeps every answer it gives. The file is a zip archive: `manifest.json` tells who
answered (version, hash of the library, numerics), on which model (its hash), and what was asked; `arrays/SHA256.npy`
are the answers, each under the hash of its bytes, so that none can be changed or exchanged unnoticed. `Recording`
answers exactly what was asked then, says that it is a recording, and refuses everything else. Nothing in the file is
executed.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from reference.manifest import RecordedRun, parse
from reference.runner import (
    Float32,
    Observation,
    ReferenceUnavailableError,
    Request,
    Rows,
    Runner,
    RunnerInfo,
    describe,
    span,
)

SCHEMA = "bitnet-crossval/recording/1"
_MANIFEST = "manifest.json"
_MAX_MANIFEST = 64 << 20
_MAX_ARRAY = 1 << 34
#: What zip, JSON and numpy say of bytes that are damaged, encrypted or of no kind they know.
_UNREADABLE = (
    KeyError,
    TypeError,
    ValueError,
    RuntimeError,
    MemoryError,
    OSError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
)
_Asked = tuple[tuple[int, ...], int, bool]
_Text = tuple[str, bool, bool]


class Recorder:
    """A runner that passes everything on to another one and keeps the answers.

    Args:
        runner: Who answers.
        weights: Whether decoded weights are kept too; they are as large as the model.
    """

    def __init__(self, runner: Runner, *, weights: bool = True) -> None:
        self._runner, self._keep_weights = runner, weights
        self._runs: dict[_Asked, tuple[Request, Observation]] = {}
        self._texts: dict[_Text, tuple[int, ...]] = {}
        self._weights: dict[str, Float32] = {}

    @property
    def info(self) -> RunnerInfo:
        """Of the runner that answers."""
        return self._runner.info

    @property
    def answered(self) -> bool:
        """Whether anything was computed that can be saved."""
        return bool(self._runs)

    def run(self, request: Request) -> Observation:
        """Compute, and keep it. What is computed on locked inputs is not kept: they are another engine's. Nor are
        logits of the last position alone, which a recording has among the others.
        """
        seen = self._runner.run(request)
        if request.lock is None and not request.last_only:
            key = _asked(request)
            before = self._runs.get(key)
            if before is None or before[0].n_greedy <= request.n_greedy:
                self._runs[key] = request, seen
        return seen

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> tuple[int, ...]:
        """Ids of a text, kept."""
        ids = self._runner.tokenize(text, add_special=add_special, parse_special=parse_special)
        self._texts[text, add_special, parse_special] = ids
        return ids

    def weights(self, name: str, rows: Rows = None) -> Float32:
        """A tensor or some of its rows; all of it is kept if weights are."""
        if not self._keep_weights:
            return self._runner.weights(name, rows)
        if name not in self._weights:
            self._weights[name] = self._runner.weights(name)
        return self._weights[name][span(rows)]

    def close(self) -> None:
        """Close the runner; what was kept stays."""
        self._runner.close()

    def save(self, path: str | os.PathLike[str]) -> int:
        """Write the file, whole or not at all; returns how many requests it answers.

        Raises:
            ReferenceUnavailableError: Nothing was computed, or the file cannot be written.
        """
        target = Path(path)
        if not self._runs:
            raise ReferenceUnavailableError("nothing was computed that could be recorded")
        if target.exists() and not target.is_file():
            raise ReferenceUnavailableError(f"{target} cannot be written: it is no regular file")
        try:
            with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}-", delete=False) as file:
                scratch = Path(file.name)
                try:
                    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
                        self._write(archive)
                except BaseException:
                    scratch.unlink()
                    raise
            scratch.replace(target)
        except OSError as error:
            raise ReferenceUnavailableError(f"{target} cannot be written: {error.strerror}") from error
        return len(self._runs)

    def _write(self, archive: zipfile.ZipFile) -> None:
        written: set[str] = set()

        def put(array: Float32) -> str:
            key = _sha256(array)
            if key not in written:
                written.add(key)
                data = io.BytesIO()
                np.save(data, np.ascontiguousarray(array, "<f4"), allow_pickle=False)
                archive.writestr(_entry(f"arrays/{key}.npy"), data.getvalue())
            return key

        manifest: dict[str, Any] = {
            "schema": SCHEMA,
            "runner": describe(self.info),
            "runs": [
                {
                    "ids": list(request.ids),
                    "n_batch": _asked(request)[1],
                    "taps_asked": request.taps,
                    "generated": list(seen.generated),
                    "logits": put(seen.logits),
                    "taps": [[*key, put(value)] for key, value in seen.taps.items()],
                }
                for request, seen in self._runs.values()
            ],
            "texts": [[*asked, list(ids)] for asked, ids in self._texts.items()],
            "weights": {name: put(value) for name, value in self._weights.items()},
        }
        manifest["digest"] = _digest(manifest)
        archive.writestr(_entry(_MANIFEST), json.dumps(manifest))


class Recording:
    """A `Runner` that replays a file.

    Args:
        path: The file.

    Raises:
        ReferenceUnavailableError: It is not there, no recording, or damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        try:
            self._archive = zipfile.ZipFile(self._path)
        except (OSError, zipfile.BadZipFile) as error:
            raise self._damaged(str(error)) from error
        try:
            self._read(json.loads(self._member(_MANIFEST, _MAX_MANIFEST)))
        except _UNREADABLE as error:
            self._archive.close()
            raise self._damaged(str(error)) from error

    def _read(self, manifest: Mapping[str, Any]) -> None:
        if manifest["schema"] != SCHEMA:
            raise ValueError(f"its schema is {manifest['schema']!r}, not {SCHEMA!r}")
        if manifest["digest"] != _digest(manifest):
            raise ValueError("its manifest was changed after it was written")
        held = parse(manifest)
        self.info = replace(held.info, obtained="recorded")
        self._runs: dict[_Asked, RecordedRun] = {(run.ids, run.n_batch, run.taps_asked): run for run in held.runs}
        self._texts, self._weights = held.texts, held.weights

    def __enter__(self) -> Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def rungs(self) -> frozenset[str]:
        """Rungs of the ladder that the file has answers for."""
        lacking = {"tokens": not self._texts, "weights": not self._weights}
        lacking["operations"] = not any(run.taps for run in self._runs.values())
        every = ("identity", "tokens", "weights", "operations", "logits", "decode", "greedy", "quality")
        return frozenset(rung for rung in every if not lacking.get(rung, False))

    def run(self, request: Request) -> Observation:
        """Replay a request that was recorded, or one for fewer greedy tokens.

        Raises:
            ReferenceUnavailableError: It was not recorded, or the file is damaged.
        """
        run = None if request.lock is not None else self._runs.get(_asked(request))
        run = run or (None if request.lock is not None else self._runs.get((*_asked(request)[:2], True)))
        if run is None or len(run.generated) < request.n_greedy:
            what = "on locked inputs" if request.lock is not None else f"of {len(request.ids)} ids"
            raise ReferenceUnavailableError(
                f"{self._path.name} does not hold the computation {what} that is asked for",
                remedy=f"it holds {len(self._runs)}, of other ids or in other batches; record this one too",
            )
        generated = run.generated[: request.n_greedy]
        first = len(request.ids) - 1 if request.last_only else 0
        n = len(request.ids) + max(request.n_greedy - 1, 0)
        taps = {key: self._array(value) for key, value in run.taps.items()} if request.taps else {}
        return Observation(
            ids=(*request.ids, *generated), logits=self._array(run.logits)[first:n], generated=generated, taps=taps
        )

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> tuple[int, ...]:
        """Recorded ids of a recorded text; anything else is unavailable."""
        ids = self._texts.get((text, add_special, parse_special))
        if ids is None:
            raise ReferenceUnavailableError(f"{self._path.name} does not hold the tokens of {text[:60]!r}")
        return ids

    def weights(self, name: str, rows: Rows = None) -> Float32:
        """A recorded tensor, or some of its rows; anything else is unavailable."""
        if name not in self._weights:
            raise ReferenceUnavailableError(f"{self._path.name} does not hold the decoded {name}")
        return self._array(self._weights[name])[span(rows)]

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def _member(self, name: str, limit: int) -> bytes:
        """A part of the archive, unpacked; it may not be larger than `limit`."""
        size = self._archive.getinfo(name).file_size
        if size > limit:
            raise ValueError(f"{name} has {size} bytes, more than any")
        return self._archive.read(name)

    def _array(self, key: str) -> Float32:
        """An array by its hash, checked."""
        name = f"arrays/{key}.npy"
        try:
            array = np.load(io.BytesIO(self._member(name, _MAX_ARRAY)), allow_pickle=False)
        except _UNREADABLE as error:
            raise self._damaged(f"{name}: {error}") from error
        if array.dtype != np.dtype("<f4") or array.ndim != 2 or not math.prod(array.shape) or _sha256(array) != key:
            raise self._damaged(f"{name} is not what its name says")
        values: Float32 = array
        return values

    def _damaged(self, why: str) -> ReferenceUnavailableError:
        return ReferenceUnavailableError(
            f"{self._path} cannot be replayed: {why}", remedy="name a file that `python -m crossval record` wrote"
        )


def _asked(request: Request) -> _Asked:
    """What decides the answer: ids, how many of them are evaluated together, and whether taps are wanted."""
    n = len(request.ids)
    return request.ids, n if request.n_batch is None else min(max(request.n_batch, 1), n), request.taps


def _sha256(array: Float32) -> str:
    """Of the values and their shape."""
    digest = hashlib.sha256(repr(array.shape).encode())
    digest.update(np.ascontiguousarray(array, "<f4").data)
    return digest.hexdigest()


def _digest(manifest: Mapping[str, Any]) -> str:
    """Of everything in a manifest but the digest itself."""
    content = {name: value for name, value in manifest.items() if name != "digest"}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _entry(name: str) -> zipfile.ZipInfo:
    """An entry without a time of its own, so that the same answers make the same file."""
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_DEFLATED
    return entry
