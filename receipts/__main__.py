"""`python -m receipts`."""

from __future__ import annotations

import sys

from receipts import program
from receipts.cli import app
from receipts.errors import ReceiptError


def main() -> None:
    """The command line; a user's mistake is one sentence on standard error, never a traceback."""
    try:
        program.run("receipts", lambda: app(prog_name="python -m receipts"))
    except ReceiptError as error:
        print(f"receipts: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
