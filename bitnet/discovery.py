"""Where a model's tokenizer is found: one chain, each step of it said.

    explicit path → BITNET_TOKENIZER → beside the model → the caches → embedded in the model → download

A tokenizer that the user names must fit the model (`tokenizer_fit`), or there is an error. One that merely lies about,
beside the model or in a cache, is passed over if it does not fit, and the step says why.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Literal

from bitnet import hub_cache, tokenizer_files
from bitnet.errors import BitNetError, DownloadError, TokenizerError, UsageError
from bitnet.gguf import GGUF
from bitnet.hub_cache import Location
from bitnet.tokenizer import Tokenizer, from_gguf
from bitnet.tokenizer_files import COMPANIONS, NAMES, TokenizerFile
from bitnet.tokenizer_fit import Expected, check
from bitnet.vocabulary import read_vocabulary

Source = Literal["file", "cache", "embedded", "download"]
Outcome = Literal["used", "absent", "refused", "skipped"]

VARIABLE = "BITNET_TOKENIZER"
_REPOSITORY_KEYS = (
    "general.source.huggingface.repository",
    "general.source.repo_url",
    "general.repo_url",
    "general.source.url",
    "general.url",
    "general.base_model.0.repo_url",
)
_HUB_URL = re.compile(r"(?:https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)?([A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*?)/?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step of the search.

    Attributes:
        place: Where was looked.
        outcome: Whether a tokenizer was "used", "absent", "refused" (found, but unfit), or the step "skipped".
        detail: What was found, or why not.
    """

    place: str
    outcome: Outcome
    detail: str

    def __str__(self) -> str:
        return f"{self.place}: {self.detail}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """A tokenizer and how it was found.

    Attributes:
        tokenizer: The tokenizer.
        source: "file", "cache", "embedded" or "download".
        sha256: Digest of its file, or of the tokenizer keys of a GGUF.
        path: The file it was read from.
        steps: The search, in order; the last step is the one that was used.
        notices: What its user should know about it.
        chat_template: A template that came with it, or None; an embedded one is the model's to give.
    """

    tokenizer: Tokenizer
    source: Source
    sha256: str
    path: Path
    steps: tuple[Step, ...]
    notices: tuple[str, ...]
    chat_template: str | None

    @property
    def summary(self) -> str:
        """The search in one line."""
        return f"the tokenizer is from: {self.steps[-1]} (before: {'; '.join(map(str, self.steps[:-1]))})"


def discover(
    model: GGUF | None = None,
    *,
    path: str | PathLike[str] | None = None,
    folder: str | PathLike[str] | None = None,
    n_vocab: int | None = None,
    special_ids: Mapping[str, int] | None = None,
    repo: str | None = None,
    revision: str = "main",
    sha256: str | None = None,
    offline: bool | None = None,
    progress: bool = False,
) -> Discovery:
    """Find the tokenizer of a model.

    Args:
        model: A GGUF, whose folder, metadata and embedded tokenizer are looked at, or an open checkpoint.
        path: A tokenizer file, GGUF or folder, before all else.
        folder: The folder of a model that is not a GGUF.
        n_vocab: Rows of the model's embedding.
        special_ids: Ids of "bos" and "eos" that the model's configuration gives.
        repo: Repository of the tokenizer; default what the model's metadata or its place in a cache says.
        revision: Branch, tag or commit of that repository.
        sha256: Refuse any tokenizer file with another digest (of a GGUF: of its tokenizer keys).
        offline: Do not download; default BITNET_OFFLINE.
        progress: Show a bar while downloading.

    Raises:
        TokenizerError: None was found that fits, or the one that was named does not.
        UsageError: A variable or an argument has no meaning.
        ResourceLimitError: The file that was named is too large.
    """
    if model is not None and model.made_here:  # a checkpoint: nothing is embedded, all lies beside
        folder, special_ids, model = model.path, model.special_ids, None
    return _Search(
        model=model,
        folder=Path(folder) if folder is not None else model.path.parent if model is not None else None,
        n_vocab=n_vocab,
        special_ids=special_ids,
        repos=(hub_cache.checked_repo(repo),) if repo is not None else repositories(model, folder),
        revision=revision,
        sha256=sha256.lower().removeprefix("sha256:") if sha256 is not None else None,
        offline=hub_cache.offline() if offline is None else offline,
        progress=progress,
    ).run(path)


def repositories(model: GGUF | None, folder: str | PathLike[str] | None = None) -> tuple[str, ...]:
    """Repositories that may hold a model's tokenizer: the one it was found in, and those that its metadata names."""
    found: dict[str, None] = {}
    for place in (model.path if model is not None else None, Path(folder) / "x" if folder is not None else None):
        repo = hub_cache.repo_of(place) if place is not None else None
        if repo is not None:
            found |= {repo: None, re.sub("(?i)-gguf$", "", repo): None}
    for key in _REPOSITORY_KEYS if model is not None else ():
        value = model.metadata.get(key) if model is not None else None
        named = _HUB_URL.fullmatch(value) if isinstance(value, str) else None
        if named:
            found[named[1]] = None
    return tuple(repo for repo in found if _is_repo(repo))


def _is_repo(name: str) -> bool:
    try:
        hub_cache.checked_repo(name)
    except UsageError:
        return False
    return True


@dataclass(kw_only=True)
class _Search:
    """The chain at work."""

    model: GGUF | None
    folder: Path | None
    n_vocab: int | None
    special_ids: Mapping[str, int] | None
    repos: tuple[str, ...]
    revision: str
    sha256: str | None
    offline: bool
    progress: bool
    _steps: list[Step] = field(default_factory=list)
    _expected: Expected | None = None
    _unusable: TokenizerError | None = None  # what is wrong with the embedded one

    def run(self, path: str | PathLike[str] | None) -> Discovery:
        variable = os.environ.get(VARIABLE, "").strip()
        for place, named in (("explicit path", path), (VARIABLE, variable or None)):
            if named is not None:
                return self._found(self._fitting(tokenizer_files.read(named)), "file", place)
            self._say(place, "absent", "not set")
        for search in (self._beside, self._cached, self._embedded, self._downloaded):
            found = search()
            if found is not None:
                return found
        said = "; ".join(map(str, self._steps))
        if self._unusable is not None:
            what = f"{self._unusable.what}, and no other tokenizer was found ({said})"
            raise TokenizerError(what, where=self._unusable.where, remedy=self._unusable.remedy)
        raise TokenizerError(
            f"no tokenizer was found. {said}",
            where=self.model.path if self.model is not None else self.folder,
            remedy=f"name a tokenizer.json, tokenizer.model or GGUF by argument or in {VARIABLE}",
        )

    def _beside(self) -> Discovery | None:
        place = "beside the model"
        if self.folder is None:
            return self._miss(place, "skipped", "the model has no folder")
        path = tokenizer_files.in_folder(self.folder)
        if path is None:
            return self._miss(place, "absent", f"no {' or '.join(NAMES)}")
        return self._try(partial(tokenizer_files.read, path), "file", place)

    def _cached(self) -> Discovery | None:
        if not self.repos:
            return self._miss("caches", "skipped", "no repository is known")
        for location in self._locations():
            path = hub_cache.find(location)
            if path is not None:
                found = self._try(partial(tokenizer_files.read, path), "cache", "caches")
                if found is not None:
                    return found
        if self._steps[-1].place != "caches":
            self._say("caches", "absent", f"nothing of {', '.join(self.repos)}")
        return None

    def _embedded(self) -> Discovery | None:
        place = "embedded"
        model = self.model
        if model is None:
            return self._miss(place, "skipped", "the model is no GGUF")
        try:
            tokenizer = from_gguf(model)
            digest = self._pinned(tokenizer_files.embedded_sha256(model.metadata))
            expected = Expected(where=str(model.path), n_vocab=self.n_vocab, special_ids=self.special_ids)
            notices = check(tokenizer, expected)
        except TokenizerError as error:
            if "tokenizer.ggml.model" not in model.metadata:
                return self._miss(place, "absent", error.what)
            self._unusable = error
            return self._miss(place, "refused", error.what)
        self._say(place, "used", model.path.name)
        return self._result(tokenizer, "embedded", digest, model.path, notices, template=None)

    def _downloaded(self) -> Discovery | None:
        place = "download"
        if not self.repos:
            return self._miss(place, "skipped", "no repository is known")
        if self.offline:
            return self._miss(place, "skipped", "the network is forbidden")
        from bitnet.download import fetch

        for location in self._locations():
            try:
                fetched = fetch(
                    location.repo, location.file, revision=location.revision, sha256=self.sha256, progress=self.progress
                )
            except BitNetError as error:
                self._say(place, "refused" if not isinstance(error, DownloadError) else "absent", _line(error))
                continue
            for name in COMPANIONS:
                try:
                    fetch(location.repo, name, revision=fetched.commit)
                except DownloadError:
                    continue  # not every repository has them
            found = self._try(partial(tokenizer_files.read, fetched.path), "download", place)
            if found is not None:
                return found
        return None

    def _locations(self) -> Iterator[Location]:
        for repo in self.repos:
            for name in NAMES:
                yield Location(repo=repo, file=name, revision=self.revision)

    def _try(self, read: Callable[[], TokenizerFile], source: Source, place: str) -> Discovery | None:
        """A tokenizer that lies about: passed over, and said, if it is damaged or unfit."""
        try:
            fitting = self._fitting(read())
        except BitNetError as error:
            return self._miss(place, "refused", f"passed over: {_line(error)}")
        return self._found(fitting, source, place)

    def _fitting(self, file: TokenizerFile) -> tuple[TokenizerFile, tuple[str, ...]]:
        self._pinned(file.sha256, file.path)
        return file, check(file.tokenizer, self._expect())

    def _pinned(self, digest: str, path: Path | None = None) -> str:
        if self.sha256 is not None and digest != self.sha256:
            raise TokenizerError(
                f"has sha256 {digest}, not the {self.sha256} that was asked for",
                where=path,
                remedy="check the digest and the revision",
            )
        return digest

    def _expect(self) -> Expected:
        """What the model says; a damaged vocabulary in it is no reason to refuse a sound file."""
        if self._expected is None:
            embedded = None
            where = str(self.model.path if self.model is not None else self.folder or "model")
            if self.model is not None:
                try:
                    embedded = read_vocabulary(self.model.metadata, where=where)
                except TokenizerError:
                    embedded = None
            self._expected = Expected(
                where=where, n_vocab=self.n_vocab, special_ids=self.special_ids, embedded=embedded
            )
        return self._expected

    def _found(self, fitting: tuple[TokenizerFile, tuple[str, ...]], source: Source, place: str) -> Discovery:
        file, notices = fitting
        self._say(place, "used", f"{file.path} ({file.format})")
        return self._result(
            file.tokenizer, source, file.sha256, file.path, (*file.notices, *notices), template=file.chat_template
        )

    def _result(
        self,
        tokenizer: Tokenizer,
        source: Source,
        digest: str,
        path: Path,
        notices: tuple[str, ...],
        *,
        template: str | None,
    ) -> Discovery:
        passed_over = tuple(f"tokenizer {step}" for step in self._steps if step.outcome == "refused")
        assumed = (
            (f"the splitting rules are {tokenizer.pre}, {tokenizer.pre_source}",)
            if tokenizer.pre_source != "declared"
            else ()
        )
        return Discovery(
            tokenizer=tokenizer,
            source=source,
            sha256=digest,
            path=path,
            steps=tuple(self._steps),
            notices=(*passed_over, *assumed, *notices),
            chat_template=template,
        )

    def _miss(self, place: str, outcome: Outcome, detail: str) -> Discovery | None:
        """Say a step that found nothing to use."""
        self._say(place, outcome, detail)
        return None

    def _say(self, place: str, outcome: Outcome, detail: str) -> None:
        self._steps.append(Step(place=place, outcome=outcome, detail=detail))


def _line(error: BitNetError) -> str:
    return error.what if error.where is None else f"{error.where}: {error.what}"
