"""`bitnet model info`: what a file is, and what is odd about it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnet.cli.options import Format, ModelArgument, Output, model_named

if TYPE_CHECKING:
    from bitnet.file_info import FileInfo
    from bitnet.gguf import TensorInfo


def info(
    model: ModelArgument = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    digest: Annotated[bool, typer.Option("--sha256", help="Digest of the file, which is read whole for it.")] = False,
    output: Output = Format.human,
) -> None:
    """Show what a model file is, and what is odd about it. Only the header is read."""
    from bitnet.cli import output as out
    from bitnet.file_info import describe
    from bitnet.hf import open_model

    gguf = open_model(model_named(model))
    found = describe(gguf)
    sha256 = gguf.sha256() if digest else None
    listed = list(gguf.tensors.values())
    if output is Format.json:
        more = {"sha256": sha256, "tensors": [_plain(t) for t in listed] if tensors else None}
        print(out.document("model-info-1", found.to_dict() | more))
        return
    out.facts([*_rows(found), *([("sha256", sha256)] if sha256 else [])])
    if tensors:
        print()
        cells = [(t.name, t.type.name, " × ".join(map(str, t.shape)), str(t.n_bytes)) for t in listed]
        out.table(("tensor", "type", "shape", "bytes"), cells, right=(3,))


def _rows(found: FileInfo) -> Iterator[tuple[str, str]]:
    from bitnet.cli.output import megabytes

    c, t = found.config, found.tokenizer
    yield "file", f"{found.path}, {megabytes(found.n_bytes)}"
    if found.name:
        yield "name", found.name
    sub_norms = "with" if c.sub_norms else "no"
    rotary = c.rope_style.replace("_", " ")
    yield "architecture", f"{c.arch}: {c.activation} ({c.activation_source}), rotary {rotary}, {sub_norms} sub-norms"
    heads = f"{c.n_head} query heads, {c.n_head_kv} key heads, width {c.head_dim}"
    yield "layers", f"{c.n_layer} × ({heads}; n_embd {c.n_embd}, n_ff {c.n_ff})"
    yield "vocabulary", f"{c.n_vocab}, head {'tied to the embedding' if c.tied_head else 'of its own'}"
    yield "context", f"{c.n_ctx} tokens, rope_theta {c.rope_theta:g}, rms_eps {c.rms_eps:g}"
    yield "weights", f"{found.n_weights / 1e6:.1f} million, {megabytes(found.bytes_per_token)} read for each token"
    counts = (f"{n.n_tensors} {name} ({megabytes(n.n_bytes)})" for name, n in found.types.items())
    yield "tensors", ", ".join(counts)
    rules = f"splitting rules {t.pre or 'not declared'}, {'with' if t.chat_template else 'no'} chat template"
    yield "tokenizer", f"{t.model}, {t.n_tokens} tokens, {rules}" if t.model else "none in the file"
    if found.fault:
        yield "not loadable", found.fault
    for notice in found.notices:
        yield "note", notice


def _plain(t: TensorInfo) -> dict[str, Any]:
    return {"name": t.name, "type": t.type.name, "shape": list(t.shape), "n_bytes": t.n_bytes, "offset": t.offset}
