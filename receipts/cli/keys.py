"""The commands that vouch: keygen, sign."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from receipts.cli.app import DEFAULT, ReceiptPath, app
from receipts.errors import ReceiptError


@app.command()
def keygen(
    path: Annotated[Path, typer.Argument(metavar="KEY", help="Where the private key goes; the public one to KEY.pub.")],
) -> None:
    """Make an Ed25519 key pair. The private key is readable by its owner alone, and no key is ever overwritten.

    Exit codes: 0 made; 2 a file is in the way, or cannot be written.

    Example: python -m receipts keygen ~/.config/receipts/release
    """
    from receipts.keys import generate  # cryptography is loaded only where it is needed

    public, identifier = generate(path)
    print(f"private key {path} (keep it to yourself)")
    print(f"public key  {public}")
    print(f"key id      {identifier}")


@app.command()
def sign(
    path: ReceiptPath = DEFAULT,
    key: Annotated[Path, typer.Option(help="The private key.")] = Path("receipts.key"),
) -> None:
    """Sign a receipt and its side files: a DSSE envelope around an in-toto statement, beside the receipt.

    Several signers sign one after another. What is invalid is not signed; whether the gate passes is not asked.

    Exit codes: 0 signed; 2 wrong usage, no such file, or a key that cannot be used; 5 the receipt is invalid.

    Example: python -m receipts sign ci/inference.json --key ~/.config/receipts/release
    """
    from receipts.sign import sign as put_name_to
    from receipts.verify import verify

    report = verify(path, gate=False)
    if not report.valid:
        first = report.failures[0]
        raise ReceiptError(
            f"is invalid and was not signed: {first.message}",
            path=first.path,
            file=str(path),
            remedy="`python -m receipts verify` lists every finding",
        )
    envelope, identifier = put_name_to(path, key)
    print(f"signed {path} as {identifier[:12]}: {envelope}")
