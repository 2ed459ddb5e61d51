"""`bitnet model download`: files from the Hugging Face Hub, resumed, verified and kept in its cache."""

from __future__ import annotations

import sys
from pathlib import PurePosixPath
from typing import Annotated

import typer

from bitnet.cli.options import Format, Output, Quiet
from bitnet.errors import UsageError


def download(
    repo: Annotated[str, typer.Argument(help="Repository, as owner/name.", metavar="REPO")],
    file: Annotated[
        list[str] | None,
        typer.Option(help="Path in the repository; may be repeated. Default: its only GGUF, or its only file."),
    ] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    sha256: Annotated[str | None, typer.Option(help="Refuse any other content.")] = None,
    quiet: Quiet = False,
    output: Output = Format.human,
) -> None:
    """Fetch files from the Hugging Face Hub; print where they are.

    What was interrupted is gone on with; what is in the cache is not fetched again. Environment: HF_HOME (the cache),
    HF_TOKEN (for private and gated repositories), HF_ENDPOINT, BITNET_OFFLINE=1 (the cache alone).
    """
    from bitnet.cli import output as out
    from bitnet.download import Fetched, fetch, list_files

    files = file or [only_file(repo, list_files(repo, revision=revision))]
    if sha256 is not None and len(files) > 1:
        raise UsageError("one digest cannot be that of several files", where="--sha256", remedy="fetch them one by one")
    came: list[Fetched] = []
    for name in files:
        shown = not quiet and sys.stderr.isatty()
        came.append(fetch(repo, name, revision=revision, sha256=sha256, progress=shown))
        if output is Format.human:
            if not quiet:
                _tell(name, came[-1])
            print(came[-1].path, flush=True)
    if output is Format.json:
        fields = ("commit", "sha256", "n_bytes", "transferred")
        listed = [{"file": f.location.file, "path": str(f.path), **{k: getattr(f, k) for k in fields}} for f in came]
        notices = [notice for f in came for notice in f.notices]
        print(out.document("model-download-1", {"repo": repo, "files": listed, "notices": notices}))


def _tell(name: str, fetched: object) -> None:
    from bitnet.cli.output import megabytes, note
    from bitnet.download import Fetched

    assert isinstance(fetched, Fetched)
    came = f"{megabytes(fetched.transferred)} fetched" if fetched.transferred else "in the cache already"
    for notice in (*fetched.notices, f"{name} at {fetched.commit[:12]}, sha256 {fetched.sha256}, {came}"):
        note(notice)


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
