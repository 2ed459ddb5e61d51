"""`bitnet system doctor`: whether all is well."""

from __future__ import annotations

import typer

from bitnet.cli.options import Format, Output


def doctor(output: Output = Format.human) -> None:
    """Check this machine, and say what helps. Leaves with 1 if models cannot run on it."""
    from bitnet.cli import output as out
    from bitnet.doctor import examine

    checks = list(examine())
    broken = any(check.outcome == "fail" for check in checks)
    if output is Format.json:
        print(out.document("system-doctor-1", {"ok": not broken, "checks": [c.to_dict() for c in checks]}))
    else:
        rows: list[tuple[str, str, str]] = []
        for check in checks:
            rows.append((check.name, check.outcome, check.detail))
            if check.remedy:
                rows.append(("", "", f"→ {check.remedy}"))
        out.table(("check", "outcome", "what was found"), rows)
    if broken:
        raise typer.Exit(1)
