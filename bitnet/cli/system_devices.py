"""`bitnet system devices`: what models can run on here."""

from __future__ import annotations

from bitnet.cli.options import Format, Output


def devices(output: Output = Format.human) -> None:
    """List the devices, and why one cannot be used."""
    import bitnet
    from bitnet.cli import output as out

    every = bitnet.devices()
    if output is Format.json:
        print(out.document("system-devices-1", {"devices": [d.to_dict() for d in every]}))
        return
    rows = [
        (
            d.name,
            "yes" if d.available else "no",
            d.description,
            out.megabytes(d.memory_free) if d.memory_free is not None else "-",
            ", ".join(d.capabilities) if d.available else d.reason or "",
        )
        for d in every
    ]
    out.table(("device", "usable", "what it is", "free memory", "abilities, or why not"), rows, right=(3,))
