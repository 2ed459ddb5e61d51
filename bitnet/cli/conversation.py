"""A conversation with a model: its turns, the answers as they come, and the commands that begin with a slash."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Event
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from bitnet.cli.loading import summary
from bitnet.cli.output import document
from bitnet.errors import BitNetError, ResourceLimitError, UsageError
from bitnet.staging import staged

if TYPE_CHECKING:
    from bitnet.bitnet_model import BitNetModel
    from bitnet.generate import Generation
    from bitnet.generation_config import GenerationConfig

_SCHEMA = "infer-chat-1"
_ROLES = ("system", "user", "assistant")
_MAX_FILE = 16 << 20  # bytes of a saved conversation
_FULL = "/undo takes back the last exchange, /clear begins anew"

HELP = """\
/help          this
/clear         forget the conversation, but not what /system said
/system TEXT   tell the model what to be; without a text, no longer
/undo          take back the last exchange
/retry         answer the last question again, by another draw
/save FILE     write the conversation to a file
/load FILE     go on with one that was saved
/stats         tokens, room and speed
/quit          leave, as Ctrl-D does
A line that ends with \\ goes on in the next; lines between two of \"\"\" are one message; // begins a message with /.
Ctrl-C stops an answer."""


class Quit(Exception):  # noqa: N818  # the user's wish, not an error
    """The user wants to leave."""


class Stopping:
    """While an answer comes: Ctrl-C asks it to stop after the token in progress, and a second one does not ask."""

    def __init__(self) -> None:
        self.cancelled = Event()

    @property
    def asked(self) -> bool:
        """Whether the user wants it to stop."""
        return self.cancelled.is_set()

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.cancelled.set()

    def __enter__(self) -> Stopping:
        self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _value: BaseException | None, _trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)


class Conversation:
    """The turns so far, and the model that answers.

    Attributes:
        messages: Turns as `role` and `content`, oldest first.
        last: The last answer with what it cost, or None.
        mistake: The first error that was told, or None.
    """

    def __init__(self, model: BitNetModel, config: GenerationConfig, *, system: str | None = None) -> None:
        self.model = model
        self.config = config
        self.messages: list[dict[str, str]] = []
        self.last: Generation | None = None
        self.mistake: BitNetError | None = None
        self._retries = 0
        self.set_system(system)

    def set_system(self, text: str | None) -> None:
        """What the model is told to be, before all turns; None or nothing takes it back."""
        self.messages = [m for m in self.messages if m["role"] != "system"]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})

    def handle(self, text: str) -> None:
        """Answer a message, or do what a command says; a mistake is told, and nothing is changed by it.

        Raises:
            Quit: On /quit.
        """
        try:
            if text.startswith("//"):
                self.ask(text[1:])
            elif text.startswith("/"):
                self._command(text)
            elif text.strip():
                self.ask(text)
        except BitNetError as error:
            self.mistake = self.mistake or error
            _say(str(error))

    def ask(self, text: str) -> None:
        """Stream the answer to a message; both become turns."""
        self._answer([*self.messages, {"role": "user", "content": text}])

    def _answer(self, turns: list[dict[str, str]]) -> None:
        config = replace(self.config, seed=self.config.seed + self._retries)
        pieces: list[str] = []
        with Stopping() as stopping:
            try:
                decoder = self.model.decoder(turns, config, cancelled=stopping.cancelled)
                for piece in decoder:
                    pieces.append(piece)
                    sys.stdout.write(piece)
                    sys.stdout.flush()
            except ResourceLimitError as error:
                raise type(error)(f"there is no room for this message: {error.what}", remedy=_FULL) from None
            except KeyboardInterrupt:
                decoder = None
        sys.stdout.write("\n")
        sys.stdout.flush()
        if stopping.asked:
            _say("stopped; what came is kept" if pieces else "stopped before anything came; the message is dropped")
            if not pieces:
                return
        self.last = decoder.result if decoder is not None else None
        self.messages = [*turns, {"role": "assistant", "content": "".join(pieces).strip()}]
        if self.last is not None and self.last.stop_reason == "context":
            _say(f"the context is full: the answer ends here. {_FULL}")

    def _command(self, text: str) -> None:
        name, _, argument = text.partition(" ")
        command = _COMMANDS.get(name)
        if command is None:
            raise UsageError(f"there is no command {name}", remedy="/help lists them")
        command(self, argument.strip())

    def clear(self, _argument: str) -> None:
        """Forget the turns."""
        self.messages = [m for m in self.messages if m["role"] == "system"]
        self.last = None
        _say("a new conversation")

    def system(self, argument: str) -> None:
        """Set or take back the system message."""
        self.set_system(argument)
        _say("the model is told so from the next message on" if argument else "the model is told nothing")

    def undo(self, _argument: str) -> None:
        """Take back the last exchange."""
        self._take_back()
        _say("the last exchange is taken back")

    def retry(self, _argument: str) -> None:
        """Answer the last question again."""
        before, last = list(self.messages), self._take_back()
        self._retries += 1
        if self.config.temperature == 0:
            _say("the settings always take the most likely token, so the answer will be the same")
        try:
            self.ask(last)
        finally:
            if len(self.messages) < len(before):
                self.messages = before

    def _take_back(self) -> str:
        asked = [i for i, m in enumerate(self.messages) if m["role"] == "user"]
        if not asked:
            raise UsageError("nothing was asked yet")
        text = self.messages[asked[-1]]["content"]
        self.messages = self.messages[: asked[-1]]
        return text

    def save(self, argument: str) -> None:
        """Write the turns to a file."""
        path = _path(argument)
        text = document(_SCHEMA, {"messages": self.messages}) + "\n"
        if not path.parent.is_dir():
            raise UsageError("there is no such folder", where=path.parent, remedy="/save FILE in one that is there")
        with _usable(path), staged(path, folder=False, force=True) as made:
            made.write_text(text, encoding="utf-8", errors="backslashreplace")  # a lone surrogate: its escape in JSON
        _say(f"{len(self.messages)} turns are in {path}")

    def load(self, argument: str) -> None:
        """Take the turns from a file."""
        path = _path(argument)
        with _usable(path):
            self.messages = read_messages(path)
        self.last = None
        _say(f"going on after {len(self.messages)} turns")

    def stats(self, _argument: str) -> None:
        """Say how full the context is, and how fast the last answer came."""
        used = len(self.model.encode(self.messages)) if self.messages else 0
        turns = sum(m["role"] == "user" for m in self.messages)
        _say(f"{turns} exchanges; {used} of {self.model.config.n_ctx} tokens of the context are used")
        if self.last is not None:
            _say(f"last answer: {summary(self.last)}")

    def show_help(self, _argument: str) -> None:
        """List the commands."""
        _say(HELP)

    def quit(self, _argument: str) -> None:
        """Leave."""
        raise Quit


_COMMANDS: Mapping[str, Callable[[Conversation, str], None]] = {
    "/help": Conversation.show_help,
    "/clear": Conversation.clear,
    "/system": Conversation.system,
    "/undo": Conversation.undo,
    "/retry": Conversation.retry,
    "/save": Conversation.save,
    "/load": Conversation.load,
    "/stats": Conversation.stats,
    "/quit": Conversation.quit,
}


def _say(text: str) -> None:
    """To the user, beside the conversation."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _usable(path: Path) -> Iterator[None]:
    """Where a file fails, not the terminal, the conversation goes on."""
    try:
        yield
    except OSError as error:
        raise UsageError(error.strerror or str(error), where=path, remedy="/save FILE, /load FILE") from None


def _path(argument: str) -> Path:
    if not argument:
        raise UsageError("no file is named", remedy="/save FILE, /load FILE")
    return Path(argument).expanduser()


def read_messages(path: Path) -> list[dict[str, str]]:
    """The turns of a saved conversation.

    Raises:
        UsageError: It is none.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        raw = file.read(_MAX_FILE + 1)
    try:
        values: Any = json.loads(raw) if len(raw) <= _MAX_FILE else None
        messages = values["messages"]
        turns = [{"role": m["role"], "content": m["content"]} for m in messages]
        known = all(m["role"] in _ROLES and isinstance(m["content"], str) for m in turns)
    except (ValueError, TypeError, KeyError, RecursionError):
        known = False
    if not known:
        raise UsageError("is not a conversation that was saved by /save", where=path, remedy="name another")
    return turns
