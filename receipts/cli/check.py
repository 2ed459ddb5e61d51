"""The commands that judge: verify, gate, replay."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from receipts.cli.app import (
    DEFAULT,
    CasesOption,
    EveryOption,
    FormatOption,
    ModelOption,
    NonceOption,
    PolicyOption,
    ReceiptPath,
    app,
)
from receipts.errors import SettingError
from receipts.formats import FORMATS, Format
from receipts.replay import CASES

if TYPE_CHECKING:
    from receipts.trust import Trust
    from receipts.verify import ReplayRequest, Report


@app.command("verify")
def verify_command(
    path: ReceiptPath = DEFAULT,
    output: FormatOption = Format.TABLE,
    gate: Annotated[bool, typer.Option(help="Ask whether the policy is met.")] = True,
    policy: PolicyOption = "strict",
    every: EveryOption = False,
    require_signature: Annotated[
        bool, typer.Option("--require-signature", help="Refuse a receipt that no trusted key signed.")
    ] = False,
    trust: Annotated[Path | None, typer.Option(help="A trust file: keys with names, times, a threshold.")] = None,
    key: Annotated[list[Path] | None, typer.Option(help="A public key that is trusted; may be repeated.")] = None,
    signers: Annotated[int, typer.Option(min=1, help="How many of the keys of --key must have signed.")] = 1,
    replay: Annotated[bool, typer.Option("--replay", help="Compute some of it again, with the engine here.")] = False,
    model: ModelOption = None,
    cases: CasesOption = CASES,
    nonce: NonceOption = "",
) -> None:
    """Recompute what a receipt says: its form, its consistency, and whether it passes the gate.

    Exit codes: 0 passed; 1 true, but the gate failed; 2 wrong usage or no such file; 4 a part could not be replayed
    here; 5 the receipt is invalid.

    Examples:
    python -m receipts verify ci/inference.json;
    python -m receipts verify --require-signature --key release.pub;
    python -m receipts verify --replay --format junit > receipt.xml
    """
    from receipts.policy import read_policy
    from receipts.verify import verify

    request = _request(model, cases, nonce) if replay else None
    signed_by = _trust(trust, key, signers) if require_signature or trust or key else None
    report = verify(path, gate=gate, policy=read_policy(policy) if gate else None, trust=signed_by, replay=request)
    _end(report, output, every=every)


@app.command("gate")
def gate_command(
    path: ReceiptPath = DEFAULT,
    policy: PolicyOption = "strict",
    output: FormatOption = Format.TABLE,
    every: EveryOption = False,
) -> None:
    """Ask whether a receipt is true and meets a policy, as a CI job does.

    Exit codes: 0 met; 1 not met; 2 wrong usage, no such file or no such policy; 5 the receipt is invalid.

    Examples:
    python -m receipts gate ci/inference.json --policy gate.toml;
    python -m receipts gate --policy release --format github
    """
    from receipts.policy import read_policy
    from receipts.verify import verify

    _end(verify(path, policy=read_policy(policy)), output, every=every)


@app.command("replay")
def replay_command(
    path: ReceiptPath = DEFAULT,
    model: ModelOption = None,
    cases: CasesOption = CASES,
    nonce: NonceOption = "",
    output: FormatOption = Format.TABLE,
) -> None:
    """Compute cases again with the engine installed here, and compare every digest.

    Which cases is decided by the receipt's digest and a nonce drawn now, so that its writer could not know.

    Exit codes: 0 equal; 2 wrong usage or no such file; 4 no engine or no such model here; 5 invalid, or it computes to
    something else.

    Examples:
    python -m receipts replay ci/inference.json --model model.gguf;
    python -m receipts replay --cases 0 --nonce 5f1c
    """
    from receipts.verify import verify

    _end(verify(path, gate=False, replay=_request(model, cases, nonce)), output, every=False)


def _request(model: list[Path] | None, cases: int, nonce: str) -> ReplayRequest:
    from receipts.replay import draw_nonce, open_runner
    from receipts.verify import ReplayRequest

    for path in model or ():
        if not path.exists():
            raise SettingError("there is no such file or folder", file=str(path))
    return ReplayRequest(runner=open_runner(tuple(model or ())), nonce=nonce or draw_nonce(), k=cases or None)


def _trust(file: Path | None, keys: list[Path] | None, signers: int) -> Trust:
    from receipts.trust import read_trust, trust_of

    if file is not None and keys:
        raise SettingError("trust is either a file or keys", path="--trust", remedy="enter the keys in the file")
    if file is not None:
        return read_trust(file)
    if not keys:
        raise SettingError(
            "whose signature?", path="--require-signature", remedy="name public keys with --key, or a --trust file"
        )
    return trust_of(tuple(keys), signers)


def _end(report: Report, output: Format, *, every: bool) -> None:
    if output is Format.TABLE:
        from receipts.formats.table import show

        show(report, every=every)
    else:
        sys.stdout.buffer.write(FORMATS[output](report).encode("utf-8", "replace"))
    if output is Format.GITHUB and (summary := os.environ.get("GITHUB_STEP_SUMMARY")):
        from receipts.formats.github import step_summary

        try:
            with Path(summary).open("a", encoding="utf-8") as stream:
                stream.write(step_summary(report))
        except OSError as error:
            raise SettingError(f"cannot be written ({error.strerror})", file=summary) from None
    raise typer.Exit(report.exit_code)
