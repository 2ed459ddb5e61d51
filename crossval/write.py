"""What ran, written as a receipt with its side tables, where there is a place for it."""

from __future__ import annotations

import uuid
from pathlib import Path
from tempfile import TemporaryFile

import bitnet
from bitnet.errors import UsageError
from crossval import evidence
from crossval.environment import command, environment, git_state, now
from crossval.evidence import Evidence
from crossval.lane import Row
from crossval.verdict import claims
from receipts import assemble
from receipts import record as r
from receipts import write as write_receipt


def usable(folder: Path, flag: str) -> None:
    """Raise `UsageError` for a folder that cannot be written, before minutes are spent on what goes there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UsageError(
            f"cannot be written ({error.strerror})", where=folder, remedy=f"name another place with {flag}"
        ) from error


def write(gathered: Evidence, target: Path, *, started: str, seconds: float) -> r.Receipt:
    """Write the receipt and its side tables; the old one stays until the new one is whole.

    Args:
        gathered: What the receipt is made of.
        target: Its file.
        started: When the run began.
        seconds: How long it took.

    Raises:
        ReceiptError: It cannot be written, or breaks a rule.
    """
    commit, dirty = git_state(Path(bitnet.__file__).parent)
    ledgers = {id(engine): evidence.ledger_record(name, engine.model) for name, engine in gathered.engines.values()}
    built = assemble(
        timestamp=now(),
        identity=r.Identity(
            run_id=str(uuid.uuid4()),
            command=command(),
            package_version=bitnet.__version__,
            started=started,
            seconds=seconds,
            git_commit=commit,
            git_dirty=dirty,
        ),
        environment=environment(),
        claims=claims(gathered.lanes),
        models=list(gathered.models.values()),
        tokenizers=list(gathered.tokenizers.values()),
        ledger=[part for part in ledgers.values() if part.tokens],
        cases=list(gathered.cases.values()),
        references=list(gathered.references.values()),
        lanes=gathered.lanes,
        accuracy=gathered.accuracy,
        determinism=gathered.determinism,
        performance=gathered.performance,
    )
    tables = {name: map(_finite, rows) for name, rows in gathered.tables.items()}
    return write_receipt(built, target, tables)


def _finite(row: Row) -> Row:
    """A row with null where a measured value is not a number, as side tables want it."""
    return {
        k: None if isinstance(v, float) and (v != v or v in (float("inf"), -float("inf"))) else v
        for k, v in row.items()
    }
