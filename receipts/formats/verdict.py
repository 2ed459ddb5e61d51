"""The verdict in one sentence, the same in every form."""

from __future__ import annotations

from receipts.verify import Report


def verdict(report: Report) -> str:
    """What a person wants to know first."""
    if not report.valid:
        findings = sum(check.level != "gate" for check in report.failures)
        return f"Invalid: {findings} finding{'s' * (findings != 1)}. Nothing in it can be relied on."
    left = sum(check.level == "replay" and check.outcome == "inconclusive" for check in report.checks)
    rest = f" {left} part{'s' * (left != 1)} could not be replayed here." if left else ""
    if report.gate_passed is None:
        return f"Valid. The gate was not asked.{rest}"
    return ("Valid, and the gate passed." if report.gate_passed else "Valid, but the gate failed.") + rest
