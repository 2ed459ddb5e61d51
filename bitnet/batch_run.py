"""A run over a file of prompts: what is asked, decoded together where it can be, and a record for each line."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from itertools import islice
from typing import Any

from bitnet.batch_file import Identity, Line, Request, digest_of, parse
from bitnet.bitnet_model import BitNetModel
from bitnet.errors import BitNetError, ContextLengthError, ResourceLimitError
from bitnet.generate import Generation
from bitnet.generation_config import GenerationConfig


class Run:
    """Answers to lines.

    Attributes:
        identity: Of what answers them.
        written: Records made.
        errors: Those of them that are errors.
        tokens: Generated in all.
    """

    def __init__(
        self, model: BitNetModel, config: GenerationConfig, name: str, *, n_batch: int, stop_on_error: bool
    ) -> None:
        self.model, self.config, self.name = model, config, name
        self.n_batch, self.stop_on_error = n_batch, stop_on_error
        self.written = self.errors = self.tokens = 0
        numerics = model.network.numerics.to_dict()
        parts = {"model": model.gguf.sha256(), "tokenizer": model.discovery.sha256, "numerics": numerics}
        self.identity = Identity(model=digest_of(parts), settings=digest_of(config.to_dict()))

    def answers(self, lines: Iterator[Line]) -> Iterator[dict[str, Any]]:
        """A record for each line, in order.

        Raises:
            ResourceLimitError: There is no memory for a line; there may be in another run, so it has no record yet.
            BitNetError: A bad line, with `stop_on_error`.
        """
        while group := list(islice(lines, self.n_batch)):
            for line, asked, answer in self._together(group):
                yield self._record(line, asked, answer)

    def _together(self, group: list[Line]) -> Iterator[tuple[Line, Request | None, Generation | BitNetError]]:
        """Answers to some lines, those with the same settings decoded together; the others are none the worse."""
        asked: list[Request | None] = []
        answers: dict[int, Generation | BitNetError] = {}
        alike: dict[GenerationConfig, list[int]] = {}
        for i, line in enumerate(group):
            request = None
            try:
                request = parse(line)
                alike.setdefault(self.config.with_changes(**request.settings), []).append(i)
            except BitNetError as error:
                answers[i] = error
            asked.append(request)
        for config, places in alike.items():
            prompts = [r.prompt for i in places if (r := asked[i]) is not None]
            answers |= dict(zip(places, self._generate(prompts, config), strict=True))
        for i, line in enumerate(group):
            yield line, asked[i], answers[i]

    def _generate(self, prompts: list[Any], config: GenerationConfig) -> list[Generation | BitNetError]:
        try:
            return list(self.model.generate_batch(prompts, config, n_batch=self.n_batch))
        except BitNetError as error:
            if len(prompts) == 1:
                return [error]
            return [answer for prompt in prompts for answer in self._generate([prompt], config)]

    def _record(self, line: Line, asked: Request | None, answer: Generation | BitNetError) -> dict[str, Any]:
        name = asked.id if asked is not None else None
        if isinstance(answer, ResourceLimitError) and not isinstance(answer, ContextLengthError):
            remedy = "free memory, or raise BITNET_MEMORY_LIMIT; answers before it are kept, and the same run goes on"
            where = f"{self.name}, line {line.number}"
            raise ResourceLimitError(answer.what, where=where, remedy=remedy) from answer
        record = {"line": line.number, "id": name, "input": line.digest, **asdict(self.identity)}
        self.written += 1
        if isinstance(answer, BitNetError):
            if self.stop_on_error:
                where = f"{self.name}, line {line.number}"
                remedy = "mend the line and run it again; the answers before it are kept"
                raise BitNetError(answer.what, where=where, remedy=remedy)
            self.errors += 1
            empty = {"text": "", "ids": [], "prompt_tokens": 0, "stop_reason": None}
            return record | empty | {"error": answer.to_dict() | {"where": f"line {line.number}"}}
        self.tokens += len(answer.ids)
        found = {"text": answer.text, "ids": list(answer.ids), "prompt_tokens": len(answer.prompt_ids)}
        return record | found | {"stop_reason": answer.stop_reason, "error": None}
