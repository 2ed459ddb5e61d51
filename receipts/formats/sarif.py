"""A report as SARIF 2.1.0, for code-scanning views: what is wrong with the receipt, and with models by what it says.

Findings of the verifier are results under the rule's name. What the run itself found is there too: notices about a
model file (`model.notice`), and the first wrong operation of a lane (`model.operation`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from receipts.record import Receipt
from receipts.rule import RULES
from receipts.verify import Check, Report

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_MODEL_RULES = {
    "model.notice": "A reader of this model file should know this.",
    "model.operation": "An operation differs between two engines on the same inputs.",
}


def sarif(report: Report) -> str:
    """The log, indented."""
    results = [_finding(report, check) for check in report.checks if check.outcome == "fail"]
    if report.receipt is not None and report.valid:  # what a false receipt says about models is worth nothing
        results += _about_models(report.receipt)
    used = sorted({result["ruleId"] for result in results})
    for result in results:
        result["ruleIndex"] = used.index(result["ruleId"])
    version = report.receipt.identity.package_version if report.receipt else None
    driver: dict[str, Any] = {
        "name": "receipts",
        "rules": [{"id": name, "shortDescription": {"text": _says(name)}} for name in used],
    }
    log = {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "results": results,
                "properties": {"exitCode": report.exit_code, "receiptPackageVersion": version},
            }
        ],
    }
    return json.dumps(log, ensure_ascii=False, indent=2) + "\n"


def _finding(report: Report, check: Check) -> dict[str, Any]:
    return _result(check.name, "error", check.message, report.file, check.path)


def _about_models(receipt: Receipt) -> Iterator[dict[str, Any]]:
    files = {model.name: model.file for model in receipt.models}
    for i, model in enumerate(receipt.models):
        for j, notice in enumerate(model.notices):
            yield _result("model.notice", "note", notice, model.file, f"models[{i}].notices[{j}]")
    for i, lane in enumerate(receipt.lanes):
        if lane.located is None:
            continue
        place = lane.located.tap if lane.located.layer < 0 else f"{lane.located.tap} of layer {lane.located.layer}"
        cause = f"; {lane.cause.explanation or lane.cause.name}" if lane.cause and lane.cause.name else ""
        text = (
            f"{lane.name}: {place} differs by {lane.located.max_abs_err:.3g}, {lane.blame or 'nobody'} is blamed{cause}"
        )
        level = "note" if lane.deviates_as_declared else "warning"
        yield _result("model.operation", level, text, files.get(lane.model, lane.model), f"lanes[{i}].located")


def _result(rule: str, level: str, text: str, file: str, path: str) -> dict[str, Any]:
    location: dict[str, Any] = {"physicalLocation": {"artifactLocation": {"uri": quote(file)}}}
    if path:
        location["logicalLocations"] = [{"fullyQualifiedName": path}]
    return {"ruleId": rule, "level": level, "message": {"text": text or rule}, "locations": [location]}


def _says(name: str) -> str:
    if name in RULES:
        return RULES[name].says
    return _MODEL_RULES.get(name, f"What {name.split('.')[0]} demands: {name.partition('.')[2] or name}")
