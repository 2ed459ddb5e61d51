"""One model in several files: `NAME-00001-of-0000N.gguf`, each a container of its own.

The first holds the model's keys; all hold `split.no` (from 0), `split.count` and `split.tensors.count`. Opening any of
them opens all. A shard that is missing, or that belongs to another model, is an error that names it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from bitnet.errors import GGUFError, ModelFileError, ResourceLimitError
from bitnet.gguf_header import Header

MAX_SHARDS = 1024
NUMBER, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
SPLIT_KEYS = (NUMBER, COUNT, TENSORS)
_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_NAMED = 4  # missing files that are spelled out
_TOGETHER = "put all shards of one model, and nothing else of the same name, into one folder"


def shard_paths(path: Path, metadata: Mapping[str, Any]) -> tuple[Path, ...]:
    """Every file of the model that this one belongs to, in order; the file alone where it is not split.

    Args:
        path: The file that was opened.
        metadata: Its keys.

    Raises:
        GGUFError: The keys of the split contradict each other or the file's name.
        ModelFileError: A shard is missing; which is said.
        ResourceLimitError: There are more than 1024.
    """
    count = _whole(path, metadata, COUNT) if COUNT in metadata else 1
    if count == 0:
        _fault(path, COUNT, "is 0, but a split model has at least one file")
    if count == 1:
        return (path,)
    if count > MAX_SHARDS:
        raise ResourceLimitError(
            f"the model is split into {count} files; at most {MAX_SHARDS} are opened",
            where=f"{path} ({COUNT})",
            remedy="merge them into fewer",
        )
    number = _whole(path, metadata, NUMBER)
    if number >= count:
        _fault(path, NUMBER, f"is {number}, but the model is split into {count} files")
    # a link may have any name, if the others are where it points; those of a cache are links of the right names
    for named in (path, path.resolve()):
        name = _NAME.fullmatch(named.name)
        if name is not None and (int(name["number"]), int(name["count"])) == (number + 1, count):
            break
    else:
        ending = _suffix(number, count)
        reason = f"says this is shard {number + 1} of {count}, but its name does not end in {ending}"
        _fault(path, NUMBER, f"{reason}, so the others cannot be found", "give every shard its own name back")
    paths = tuple(named.with_name(name["stem"] + _suffix(i, count)) for i in range(count))
    missing = [p.name for p in paths if not p.exists()]
    if missing:
        more = f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
        raise ModelFileError(
            f"{len(missing)} of the {count} files of this model are missing: {', '.join(missing[:_NAMED])}{more}",
            where=path,
            remedy=f"download what is missing; {_TOGETHER}",
        )
    return paths


def check_shards(paths: Sequence[Path], headers: Sequence[Header]) -> None:
    """Refuse files that do not belong together: other numbers, other keys, names twice, tensors too few or too many.

    Raises:
        GGUFError: The file and the key or tensor at fault are named.
    """
    if len(paths) == 1:
        return
    first = headers[0]
    for i, (path, header) in enumerate(zip(paths, headers, strict=True)):
        for key, due in ((COUNT, len(paths)), (NUMBER, i)):
            found = _whole(path, header.metadata, key)
            if found != due:
                _fault(path, key, f"is {found}, but {due} is due in shard {i + 1} of {len(paths)}")
        for key in ("general.architecture", "general.name", TENSORS):
            ours, theirs = first.metadata.get(key), header.metadata.get(key, first.metadata.get(key))
            if ours != theirs:
                _fault(path, key, f"is {theirs!r}, but the first shard says {ours!r}: they are of different models")
    names = Counter(t.name for header in headers for t in header.tensors)
    for path, header in reversed([*zip(paths, headers, strict=True)]):
        for tensor in header.tensors:
            if names[tensor.name] > 1:
                _fault(path, f"tensor {tensor.name}", "is in another shard too")
    due = _whole(paths[0], first.metadata, TENSORS) if TENSORS in first.metadata else len(names)
    if due != len(names):
        _fault(paths[0], TENSORS, f"is {due}, but the {len(paths)} shards hold {len(names)} tensors")


def _whole(path: Path, metadata: Mapping[str, Any], key: str) -> int:
    """A count or number of the split."""
    value = metadata.get(key)
    if value is None:
        _fault(path, key, "is missing in a shard")
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        _fault(path, key, f"is {value!r}, not a whole number")
    return value


def _suffix(number: int, count: int) -> str:
    return f"-{number + 1:05d}-of-{count:05d}.gguf"


def _fault(path: Path, field: str, reason: str, remedy: str = _TOGETHER) -> NoReturn:
    raise GGUFError(reason, path=path, field=field, remedy=remedy)
