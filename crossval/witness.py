"""The engine as a verifier's witness: model files found by their hash, cases computed again to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import bitnet
from bitnet.config import Numerics
from bitnet.errors import BitNetError, UsageError
from bitnet.gguf import read
from crossval import evidence
from crossval.case import Case
from crossval.engine import EngineRunner
from receipts import record as r
from receipts.errors import ReceiptError, UnavailableError

ROOT = Path(__file__).resolve().parent.parent
#: Where a checkout keeps models, beside those that the user names.
FOLDERS = (ROOT / "fixtures" / "models", ROOT / "fixtures" / "goldens", ROOT / "build" / "crossval" / "models")


class EngineReplayer:
    """`bitnet`, as `receipts.replay` asks for it.

    Args:
        files: Model files, or folders with model files; a checkout's own are always looked at.
        n_threads: Of the engine; results do not depend on them.
    """

    def __init__(self, files: Sequence[Path] = (), *, n_threads: int | None = None) -> None:
        self.name = f"bitnet {bitnet.__version__}"
        self._n_threads = n_threads
        self._files = tuple(dict.fromkeys(_candidates((*files, *FOLDERS))))
        self._named = frozenset(path for path in files if path.is_file())
        self._hashes: dict[Path, str] = {}
        self._engines: dict[tuple[str, str], EngineRunner] = {}

    def model(self, record: r.Model) -> r.Model:
        """The file with the record's hash, read again.

        A file that the user named and that bears the model's name is taken for it, and refused where it is another.
        """
        engine = self._engine(self._path(record), record.sha256, None)
        return replace(evidence.model_record(record.name, engine.model), file=record.file)

    def tokenizer(self, record: r.Model) -> r.TokenizerRecord | None:
        """Of the file with the record's hash."""
        return evidence.tokenizer_record(record.name, self._engine(self._path(record), record.sha256, None).model)

    def case(self, model: r.Model, case: r.Case) -> r.Case:
        """The case computed again, in its own numerics."""
        try:
            numerics = Numerics.from_dict(dict(case.numerics))
            engine = self._engine(self._path(model), model.sha256, numerics)
        except UsageError as error:
            raise UnavailableError(f"the engine has no such numerics here: {error.what}") from None
        room = model.hyper_parameters.n_ctx
        if len(case.prompt_ids) + len(case.generated_ids) > room:
            raise ReceiptError(f"more ids than the model's context of {room}")
        again = Case(name=case.name, ids=case.prompt_ids, n_greedy=len(case.generated_ids))
        try:
            return evidence.case_record(case.model, engine, again)
        except BitNetError as error:
            raise ReceiptError(f"{case.name}: the engine refuses it: {error.what}") from None

    def _engine(self, path: Path, sha256: str, numerics: Numerics | None) -> EngineRunner:
        key = sha256, "" if numerics is None else repr(numerics.to_dict())
        if key not in self._engines:
            try:
                self._engines[key] = EngineRunner(path, numerics=numerics, n_threads=self._n_threads)
            except UsageError:
                raise
            except BitNetError as error:
                raise ReceiptError(f"{path.name} cannot be read: {error.what}") from None
        return self._engines[key]

    def _path(self, record: r.Model) -> Path:
        sized = [path for path in self._files if path.stat().st_size == record.bytes]
        for path in sized:
            if self._hash(path) == record.sha256:
                return path
        other = next((path for path in self._files if path.name == record.file), None)
        if other is None:
            raise UnavailableError(
                f"the model file {record.file!r} with sha256 {record.sha256[:12]}… is not here",
                remedy="name it, or its folder, with --model",
            )
        raise ReceiptError(
            f"{record.file!r} here has sha256 {self._hash(other)[:12]}…, the receipt's has {record.sha256[:12]}…"
        )

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            try:
                self._hashes[path] = read(path).sha256()
            except BitNetError:
                self._hashes[path] = ""
        return self._hashes[path]


def open_runner(files: Sequence[Path]) -> EngineReplayer:
    """What the entry point `receipts.replay` names."""
    return EngineReplayer(files)


def _candidates(places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        if place.is_file():
            yield place
        elif place.is_dir():
            yield from sorted(place.glob("*.gguf"))
