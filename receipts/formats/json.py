"""A report as one JSON object: every check, the verdict, the exit code."""

from __future__ import annotations

import json

from receipts.verify import Report


def to_json(report: Report) -> str:
    """The object, indented."""
    return json.dumps(report.to_dict(), ensure_ascii=False, indent=2) + "\n"
