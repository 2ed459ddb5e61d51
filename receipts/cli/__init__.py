"""`python -m receipts`: thin; parse, call, print. Each module holds the commands of one kind."""

from __future__ import annotations

from receipts.cli import check, keys, look  # noqa: F401  # importing them enters their commands
from receipts.cli.app import app

__all__ = ["app"]
