"""Receipts: what a run proves, written by what ran, checked by whoever doubts it.

`assemble` makes a receipt from evidence, `write` stores it, `read` and `read_table` get it back, `verify`
recomputes it. Importing this package imports neither an engine nor numpy.
"""

from receipts.codec import digest_of, ids_digest
from receipts.errors import MissingReceiptError, ReceiptError, ReceiptLimitError
from receipts.read import read, read_table
from receipts.record import OUTCOMES, RUNGS, SCHEMA_ID, SCHEMA_VERSION, Receipt
from receipts.summary import assemble
from receipts.write import seal, write

__all__ = [
    "OUTCOMES",
    "RUNGS",
    "SCHEMA_ID",
    "SCHEMA_VERSION",
    "MissingReceiptError",
    "Receipt",
    "ReceiptError",
    "ReceiptLimitError",
    "assemble",
    "digest_of",
    "ids_digest",
    "read",
    "read_table",
    "seal",
    "write",
]
