"""A receipt in sentences: what it proves, to whom, and what it does not.

The sentences are made from the evidence, and from what this verifier checked; the receipt's own claims are only quoted.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from receipts.interval import median_interval, rates
from receipts.lanes import ENGINE, Lane
from receipts.record import Receipt
from receipts.verify import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading and its sentences."""

    title: str
    sentences: tuple[str, ...]


def explain(report: Report) -> tuple[Section, ...]:
    """The sections, in the order in which a person reads them."""
    receipt = report.receipt
    if receipt is None or not report.valid:
        broken = tuple(f"{check.name}: {check.path}: {check.message}" for check in report.failures)
        return (Section(title="It proves nothing", sentences=("The receipt is invalid.", *broken)),)
    return (
        Section(title="The run", sentences=_run(receipt)),
        Section(title="Checked here", sentences=_checked(report)),
        Section(title="What it shows, if its writer did not invent it", sentences=_shows(receipt)),
        Section(title="What it does not show", sentences=_open(receipt, report)),
    )


def _run(receipt: Receipt) -> tuple[str, ...]:
    identity, machine = receipt.identity, receipt.environment
    state = {True: "with changes", False: "without changes", None: ""}[identity.git_dirty]
    commit = f"commit {identity.git_commit[:12]} {state}".strip() if identity.git_commit else "no checkout"
    return (
        f"{identity.command}, started {identity.started}, {identity.seconds:.0f} s, {commit}.",
        f"On {machine.cpu or machine.machine}, {machine.cores} cores, {machine.os}, Python {machine.python}.",
        *(f"Model {m.name}: {m.file}, {m.bytes / 1e6:.1f} MB, {m.arch}, {m.activation}." for m in receipt.models),
    )


def _checked(report: Report) -> tuple[str, ...]:
    counts = Counter((check.level, check.outcome) for check in report.checks)
    told = [
        f"Form: {counts['form', 'pass']} checks hold; the digest is its own.",
        f"Consistency: {counts['consistency', 'pass']} rules hold, recomputed from what it lists.",
    ]
    if counts["signature", "pass"]:
        told.append("Signature: enough trusted signers vouch for exactly these bytes.")
    if counts["replay", "pass"]:
        told.append(f"Replay: {counts['replay', 'pass']} parts were computed again here, equal to the bit.")
    if report.gate_passed is not None:
        told.append(f"Gate ({report.policy}): {'passed' if report.gate_passed else 'failed'}.")
    return tuple(told)


def _shows(receipt: Receipt) -> tuple[str, ...]:
    obtained = {reference.key: reference.obtained for reference in receipt.references}
    told = []
    for lane in receipt.lanes:
        if lane.outcome == "pass":
            passed = sum(rung.outcome == "pass" for rung in lane.rungs)
            how = obtained.get(lane.reference, "unknown")
            told.append(f"{lane.name}: {passed} of {len(lane.rungs)} rungs agree, up to {lane.climbed} ({how}).")
        elif lane.deviates_as_declared:
            told.append(f"{lane.name}: {_deviation(lane)}")
    tokens = sum(part.tokens for part in receipt.ledger)
    kernels = ", ".join(receipt.kernels)
    if tokens:
        told.append(f"{tokens} tokens were evaluated by {kernels}; every product of every layer is accounted for.")
    told += [f"{len(t.runs)} runs ({t.what}) gave the same bits." for t in receipt.determinism if t.equal]
    for row in receipt.performance:
        if row.engine == ENGINE and row.what == "decode" and (speeds := rates(row.tokens, row.seconds)):
            low, high = median_interval(speeds)
            told.append(f"{row.model} decoded at {low:.0f} to {high:.0f} tokens/s on {row.threads} thread(s).")
    return tuple(told) or ("Nothing.",)


def _deviation(lane: Lane) -> str:
    assert lane.known_deviation is not None
    cause = f" ({lane.cause.name})" if lane.cause else ""
    return f"the reference deviates as declared{cause}: {lane.known_deviation.reason}."


def _open(receipt: Receipt, report: Report) -> tuple[str, ...]:
    levels = {check.level for check in report.checks}
    told = []
    if "signature" not in levels:
        told.append("Who wrote it: no signature was asked for (--require-signature).")
    if "replay" not in levels:
        told.append("That it was computed at all: nothing was recomputed (--replay).")
    if receipt.identity.git_dirty or not receipt.identity.git_commit:
        told.append("Which source ran: not that of a commit.")
    told += [
        f"{lane.name}: {rung.name} is {rung.outcome}; {rung.why}."
        for lane in receipt.lanes
        for rung in lane.rungs
        if rung.outcome != "pass" and not lane.deviates_as_declared
    ]
    recorded = sorted({ref.name for ref in receipt.references if ref.obtained == "recorded"})
    if recorded:
        told.append(f"What {', '.join(recorded)} computes today: its answers were recorded before.")
    if ties := sum(len(rung.near_ties) for lane in receipt.lanes for rung in lane.rungs):
        told.append(f"Which of two tokens is right at {ties} near-ties: noise decides them.")
    if any(entry.fallback != "no" for part in receipt.ledger for entry in part.entries):
        told.append("That no kernel stood in for a faster one: some are marked as fallback, or unknown.")
    return (*told, *(f"It says itself: {claim}" for claim in receipt.claims.does_not))
