"""`bitnet infer run`: one prompt."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from bitnet.cli.options import (
    ContextOption,
    Device,
    Format,
    LookaheadOption,
    MaxNewTokens,
    ModelOption,
    Output,
    PackedCache,
    Penalty,
    PresetOption,
    Quiet,
    Seed,
    Stop,
    Temperature,
    Threads,
    TokenizerOption,
    TopK,
    TopP,
)


def run(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to continue; `-` reads standard input.")],
    model: ModelOption = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    preset: PresetOption = None,
    max_new_tokens: MaxNewTokens = None,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    repetition_penalty: Penalty = None,
    seed: Seed = None,
    stop: Stop = None,
    context: ContextOption = None,
    lookahead: LookaheadOption = None,
    threads: Threads = None,
    device: Device = None,
    tokenizer: TokenizerOption = None,
    packed_cache: PackedCache = True,
    quiet: Quiet = False,
    output: Output = Format.human,
) -> None:
    """Continue a prompt; the text comes as it is made."""
    from bitnet.cli import loading
    from bitnet.cli import output as out

    config = loading.configure(
        preset,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
        context=context,
        lookahead=lookahead,
    )
    loaded = loading.load(
        model, device=device, threads=threads, tokenizer=tokenizer, packed_cache=packed_cache, quiet=quiet
    )
    text = sys.stdin.read() if prompt == "-" else prompt
    asked = [{"role": "user", "content": text}] if chat else text
    if output is Format.json:
        result = loaded.generate(asked, config)
        about = {"model": str(loaded.gguf.path), "settings": config.to_dict()}
        notices = {"notices": loading.notices(loaded, chat=chat)}
        print(out.document("infer-run-1", about | result.to_dict() | notices))
        return
    decoder = loaded.decoder(asked, config)
    told = loading.tell(loaded, chat=chat, quiet=quiet)
    if not quiet and not chat:
        sys.stdout.write(text)
    for piece in decoder:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    loading.tell(loaded, chat=chat, quiet=quiet, told=told)
    assert decoder.result is not None
    if not quiet:
        print(loading.summary(decoder.result), file=sys.stderr)
