"""Ids in, text out as soon as it is certain.

Three things hold text back: a character whose bytes have not all come, the beginning of what may become a stop string,
and nothing else. What comes out, joined, is exactly `Tokenizer.decode` of all ids, cut before the stop string that was
complete first.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from bitnet.errors import UsageError
from bitnet.tokenizer import Pieces, Tokenizer


class TextStream:
    """Text of a growing sequence of ids.

    Args:
        tokenizer: Whose ids.
        stop: Strings that end the text; they are not part of it. If two could end it, the one complete first does,
            and of those complete with the same character, the longest.
        skip_special: Leave control tokens out, as `Tokenizer.decode` does.
        continuation: The ids go on from a prompt, so a leading space belongs to them.

    Attributes:
        stopped: The stop string that was met, or None.

    Raises:
        UsageError: A stop string is empty, or `stop` is a bare string.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        *,
        skip_special: bool = True,
        continuation: bool = False,
    ) -> None:
        if isinstance(stop, str):
            raise UsageError("stop is a string, not a sequence of strings", where="stop", remedy="put it in a list")
        if not all(stop):
            raise UsageError("a stop string is empty", where="stop", remedy="leave it out")
        self.stopped: str | None = None
        self._stop = tuple(dict.fromkeys(stop))
        self._pieces = Pieces(tokenizer, skip_special=skip_special, continuation=continuation)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self._finished = False

    def feed(self, token: int) -> str:
        """Text that is certain after one more id; "" once a stop string was met.

        Raises:
            UsageError: The id is outside the vocabulary, or the stream was finished.
        """
        if self._finished:
            raise UsageError("the stream is finished", where="TextStream.feed", remedy="begin a new one")
        if self.stopped is not None:
            return ""
        return self._release(self._decoder.decode(self._pieces.next(token)))

    def finish(self) -> str:
        """The text still held back. A character cut short becomes U+FFFD. A second call gives ""."""
        if self._finished or self.stopped is not None:
            self._finished = True
            return ""
        self._finished = True
        text = self._release(self._decoder.decode(b"", final=True))
        if self.stopped is None:
            text, self._held = text + self._held, ""
        return text

    def _release(self, new: str) -> str:
        text = self._held + new
        met = [(at + len(stop), at, stop) for stop in self._stop if (at := text.find(stop)) >= 0]
        if met:
            _, at, self.stopped = min(met)
            self._held = ""
            return text[:at]
        keep = self._undecided(text)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _undecided(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for keep in range(min(longest, len(text)), 0, -1):
            end = text[len(text) - keep :]
            if any(stop.startswith(end) for stop in self._stop):
                return keep
        return 0
