"""`bitnet download`: files from the Hugging Face Hub, resumed, verified and kept in its cache."""

from __future__ import annotations

import sys
from pathlib import PurePosixPath
from typing import Annotated

import typer

from bitnet.errors import UsageError


def download(
    repo: Annotated[str, typer.Argument(help="Repository, as owner/name.", metavar="REPO")],
    file: Annotated[
        list[str] | None,
        typer.Option(help="Path in the repository; may be repeated. Default: its only GGUF, or its only file."),
    ] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    sha256: Annotated[str | None, typer.Option(help="Refuse any other content.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the paths alone.")] = False,
) -> None:
    """Fetch files from the Hugging Face Hub; print where they are.

    What was interrupted is gone on with; what is in the cache is not fetched again. Environment: HF_HOME (the cache),
    HF_TOKEN (for private and gated repositories), HF_ENDPOINT, BITNET_OFFLINE=1 (the cache alone).

    Example: python -m bitnet download microsoft/bitnet-b1.58-2B-4T-gguf --file ggml-model-i2_s.gguf
    """
    from bitnet.download import fetch, list_files

    files = file or [only_file(repo, list_files(repo, revision=revision))]
    if sha256 is not None and len(files) > 1:
        raise UsageError("one digest cannot be that of several files", where="--sha256", remedy="fetch them one by one")
    for name in files:
        fetched = fetch(repo, name, revision=revision, sha256=sha256, progress=not quiet)
        if not quiet:
            came = f"{fetched.transferred / 1e6:.1f} MB fetched" if fetched.transferred else "in the cache already"
            for notice in (*fetched.notices, f"{name} at {fetched.commit[:12]}, sha256 {fetched.sha256}, {came}"):
                print(f"note: {notice}", file=sys.stderr)
        print(fetched.path)


def only_file(repo: str, files: tuple[str, ...]) -> str:
    """The file that is meant when none is named.

    Raises:
        UsageError: There are several GGUFs, or none among several files.
    """
    models = [name for name in files if PurePosixPath(name).suffix == ".gguf"]
    chosen = models or list(files)
    if len(chosen) == 1:
        return chosen[0]
    if not chosen:
        raise UsageError("has no files", where=repo, remedy="check the name and the revision")
    shown = ", ".join(chosen[:20]) + (", …" if len(chosen) > 20 else "")
    raise UsageError(f"has {len(models) or 'no'} GGUF files", where=repo, remedy=f"name one with --file: {shown}")
