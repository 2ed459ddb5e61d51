"""`bitnet infer chat`: a conversation at the terminal, or from a pipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated

import typer

from bitnet.cli.options import (
    ContextOption,
    Device,
    ModelOption,
    PackedCache,
    Penalty,
    Preset,
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

_ANSWER = 512  # tokens of an answer, where nothing else is asked for
_HISTORY = 1000  # lines that are remembered
_BLOCK = '"""'


def chat(
    model: ModelOption = None,
    system: Annotated[str | None, typer.Option(help="What the model is told to be.")] = None,
    load: Annotated[Path | None, typer.Option(help="Go on with a conversation that /save wrote.")] = None,
    preset: PresetOption = Preset.balanced,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", min=0, help="At most this many tokens an answer.")
    ] = _ANSWER,
    temperature: Temperature = None,
    top_k: TopK = None,
    top_p: TopP = None,
    repetition_penalty: Penalty = None,
    seed: Seed = None,
    stop: Stop = None,
    context: ContextOption = None,
    threads: Threads = None,
    device: Device = None,
    tokenizer: TokenizerOption = None,
    packed_cache: PackedCache = True,
    history: Annotated[bool, typer.Option(help="Remember what was typed, for the arrow keys next time.")] = True,
    quiet: Quiet = False,
) -> None:
    """Talk with a model. /help lists what can be typed; Ctrl-C stops an answer, Ctrl-D leaves.

    From a pipe a line that cannot be answered or done does not stop it either; it then leaves with the exit code of the
    first such line.
    """
    from bitnet.cli import loading
    from bitnet.cli.conversation import Conversation, Quit, read_messages

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
    )
    before = read_messages(load) if load is not None else []
    loaded = loading.load(
        model, device=device, threads=threads, tokenizer=tokenizer, packed_cache=packed_cache, quiet=quiet
    )
    told = loading.tell(loaded, chat=True, quiet=quiet)
    talk = Conversation(loaded, config, system=system)
    talk.messages += before
    _ = loaded.chat_template  # a model without one is refused before anything is typed
    terminal = sys.stdin.isatty()
    if terminal and not quiet:
        print("/help lists what can be typed; Ctrl-D leaves.", file=sys.stderr)
    with _line_editing(remember=history) if terminal else nullcontext():
        while True:
            try:
                talk.handle(_message(terminal=terminal))
            except KeyboardInterrupt:
                if not terminal:
                    raise
                print("\n/quit or Ctrl-D leaves", file=sys.stderr)
            except (EOFError, Quit):
                break
    if terminal:
        print(file=sys.stderr)
    loading.tell(loaded, chat=True, quiet=quiet, told=told)
    if talk.mistake is not None and not terminal:
        raise typer.Exit(talk.mistake.exit_code)


def _message(*, terminal: bool) -> str:
    """What is typed next: a line, lines that end with a backslash and the one after, or a block. Raises EOFError."""

    def ask(prompt: str) -> str:
        if terminal:
            return input(prompt)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n").removesuffix("\r")

    return message(ask)


def message(ask: Callable[[str], str]) -> str:
    """One message of one or several lines.

    Args:
        ask: Shows a prompt and returns a line; raises EOFError at the end of the input.
    """
    first = ask("> ")
    if first.strip() == _BLOCK:
        block: list[str] = []
        with suppress(EOFError):  # what came is the message, as it is where the last line goes on
            while (line := ask(". ")).strip() != _BLOCK:
                block.append(line)
        return "\n".join(block)
    lines = [first]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        try:
            lines.append(ask(". "))
        except EOFError:
            break
    return "\n".join(lines)


@contextmanager
def _line_editing(*, remember: bool) -> Iterator[None]:
    """Arrow keys and a history, where the system has readline."""
    try:
        import readline
    except ImportError:
        yield
        return
    import platformdirs

    path = Path(platformdirs.user_state_dir("bitnet-crossval")) / "chat_history"
    readline.set_history_length(_HISTORY)
    if remember:
        with suppress(OSError):
            readline.read_history_file(path)
    try:
        yield
    finally:
        if remember:
            with suppress(OSError):  # a history that cannot be kept is no reason to fail
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(mode=0o600)
                readline.write_history_file(path)
