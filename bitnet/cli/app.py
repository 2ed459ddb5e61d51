"""`python -m bitnet`: continue a prompt, look at a model, look at this machine."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from bitnet.cli.convert import convert
from bitnet.cli.download import download
from bitnet.cli.verify import verify

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="BitNet b1.58 inference: ternary weights, int8 activations, the same bits on every thread count.",
)

app.command()(convert)

ModelFile = Annotated[
    Path | None, typer.Option("--model", "-m", help="GGUF file.", envvar="BITNET_GGUF", show_envvar=True)
]
TokenizerFile = Annotated[
    Path | None,  # the variable is read by the search itself, which says so
    typer.Option("--tokenizer", help="tokenizer.json, tokenizer.model or GGUF. Default: BITNET_TOKENIZER, else found."),
]
Threads = Annotated[
    int | None, typer.Option(min=1, help="Default: BITNET_NUM_THREADS, else the physical cores. Results do not change.")
]
Device = Annotated[str | None, typer.Option(help="cpu (compiled kernels) or plain (numpy). Default: BITNET_DEVICE.")]


app.command()(verify)
app.command()(download)


@app.command()
def infer(
    prompt: Annotated[str, typer.Option("--prompt", "-p", help="Text to continue; `-` reads standard input.")],
    model: ModelFile = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", "-n", min=0, help="At most this many.")] = 128,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 always takes the most likely token.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="Keep the k most likely tokens; 0 keeps all.")] = 0,
    top_p: Annotated[float, typer.Option(help="Keep the smallest set of tokens with this probability.")] = 1.0,
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 discourages tokens already seen.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="Of the sampler.", envvar="BITNET_SEED")] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="Text that ends the answer; may be repeated.")] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt into the model's chat template.")] = False,
    threads: Threads = None,
    device: Device = None,
    tokenizer: TokenizerFile = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the text alone.")] = False,
) -> None:
    """Continue a prompt; the text comes as it is made.

    Example: python -m bitnet infer --model fixtures/models/tiny-relu2.i2_s.gguf --prompt "One day Anna"
    """
    import bitnet

    loaded = bitnet.load(model, device=device, n_threads=threads, tokenizer=tokenizer)
    text = sys.stdin.read() if prompt == "-" else prompt
    decoder = loaded.decoder(
        [{"role": "user", "content": text}] if chat else text,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    if not quiet:
        found = loaded.discovery
        for notice in (*loaded.notices, *found.notices, found.summary):
            print(f"note: {notice}", file=sys.stderr)
        if chat and loaded.chat_template.source != "declared":
            print(f"note: the chat template is {loaded.chat_template.source}", file=sys.stderr)
        if not chat:
            sys.stdout.write(text)
    for piece in decoder:
        sys.stdout.write(piece)
        sys.stdout.flush()
    sys.stdout.write("\n")
    sys.stdout.flush()
    result = decoder.result
    assert result is not None
    if not quiet:
        t = result.metrics
        prefill = t.prefill_tokens / t.prefill_seconds if t.prefill_seconds else 0.0
        print(
            f"{t.prefill_tokens} prompt tokens ({prefill:.0f}/s), {len(result.ids)} new ({t.decode_rate:.1f}/s), "
            f"ended by {result.stop_reason.replace('_', ' ')}",
            file=sys.stderr,
        )


@app.command()
def info(model: ModelFile = None) -> None:
    """Show what a model file is, and what is odd about it.

    Example: python -m bitnet info --model fixtures/models/tiny-relu2.i2_s.gguf
    """
    from collections import Counter

    import bitnet

    loaded = bitnet.load(model)
    c = loaded.config
    types = Counter(t.type.name for t in loaded.gguf.tensors.values())
    heads = f"{c.n_head} query heads, {c.n_head_kv} key heads, width {c.head_dim}"
    rows = {
        "file": f"{loaded.gguf.path.name}, {loaded.gguf.n_bytes / 1e6:.1f} MB",
        "architecture": f"{c.arch}: {c.activation} ({c.activation_source}), rotary {c.rope_style.replace('_', ' ')}",
        "layers": f"{c.n_layer} × ({heads}; n_embd {c.n_embd}, n_ff {c.n_ff})",
        "vocabulary": f"{c.n_vocab}, head {'tied to the embedding' if c.tied_head else 'of its own'}",
        "context": f"{c.n_ctx} tokens, rope_theta {c.rope_theta:g}, rms_eps {c.rms_eps:g}",
        "tensors": ", ".join(f"{n} {name}" for name, n in types.most_common()),
        "weights": f"{loaded.weights.n_bytes / 1e6:.1f} MB read for each token, sha256 {loaded.weights.digest()[:16]}…",
        "numerics": ", ".join(f"{k} {v}" for k, v in loaded.network.numerics.to_dict().items()),
    }
    for name, value in rows.items():
        print(f"{name:<13} {value}")
    for notice in loaded.notices:
        print(f"note          {notice}")


@app.command()
def system() -> None:
    """Show the device, the instruction set, and every setting with where it comes from."""
    import os

    from bitnet.api import default_threads
    from bitnet.kernels import instruction_set
    from bitnet.kernels.compile import cache_folder
    from bitnet.kernels.variants import VARIANTS, choose, runs_here

    def origin(variable: str) -> str:
        return variable if os.environ.get(variable) else "default"

    device = os.environ.get("BITNET_DEVICE") or "cpu"
    print(f"{'device':<13} {device} ({origin('BITNET_DEVICE')}), kernels for {instruction_set(device)}")
    chosen = choose()
    for i, v in enumerate(VARIANTS.values()):
        state = f"in use ({origin('BITNET_ISA')})" if v is chosen else "usable" if runs_here(v) else "not on this CPU"
        name = "kernels" if i == 0 else ""
        print(f"{name:<13} {v.id:<16} {v.isa:<13} {v.layout:<7} {state}: {v.what}")
    print(f"{'threads':<13} {default_threads()} ({origin('BITNET_NUM_THREADS')})")
    print(f"{'model':<13} {os.environ.get('BITNET_GGUF') or 'none'} ({origin('BITNET_GGUF')})")
    print(f"{'seed':<13} {os.environ.get('BITNET_SEED') or '0'} ({origin('BITNET_SEED')})")
    folder = cache_folder()
    print(f"{'kernel cache':<13} {folder if folder is not None else 'none: nothing can be written'}")
