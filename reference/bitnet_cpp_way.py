"""How a tree of bitnet.cpp is spoken to: through our compiled interface, or else through its server, and why.

The interface shows everything, so it comes first; it needs headers, libraries and a compiler. A llama-server needs
nothing but itself, and shows ids and probabilities. Outputs that were recorded are lanes of their own, which are there
in any case. What was chosen, and why not the better one, stands in the reference's details.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from reference import bitnet_cpp_build
from reference.bitnet_cpp import BitnetCpp
from reference.bitnet_cpp_build import DIRECTORY_VARIABLE
from reference.bitnet_cpp_server import BitnetCppServer, find_server
from reference.runner import ReferenceUnavailableError, Runner

Wish = Literal["auto", "shim", "server"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What was chosen.

    Attributes:
        kind: `shim` or `server`.
        root: The tree.
        why: Why not the better one; "" where it is.
        binary: The server, if that is asked.
    """

    kind: Literal["shim", "server"]
    root: Path
    why: str = ""
    binary: Path | None = None


def choose(directory: str | os.PathLike[str] | None = None, wish: Wish = "auto") -> Way:
    """How to speak to a tree. The interface is compiled by this, if it was not before.

    Args:
        directory: The tree; None: `BITNET_CPP_DIR`.
        wish: What is wanted; `auto` for the best that can be had.

    Raises:
        ReferenceUnavailableError: Neither can be had, or not what is wished for.
    """
    root = Path(directory) if directory is not None else bitnet_cpp_build.declared()
    if root is None:
        raise ReferenceUnavailableError(
            "there is no bitnet.cpp here", remedy=f"build it, and name its tree with {DIRECTORY_VARIABLE}"
        )
    if wish == "server":
        return Way(kind="server", root=root, why="as wished", binary=find_server(root))
    try:
        bitnet_cpp_build.compile_shim(bitnet_cpp_build.find_tree(root))
    except ReferenceUnavailableError as error:
        if wish == "shim":
            raise
        try:
            return Way(kind="server", root=root, why=error.what, binary=find_server(root))
        except ReferenceUnavailableError as neither:
            raise ReferenceUnavailableError(f"{error.what}; and {neither.what}", remedy=error.remedy) from neither
    return Way(kind="shim", root=root)


def open_bitnet_cpp(
    model: str | os.PathLike[str],
    *,
    directory: str | os.PathLike[str] | None = None,
    wish: Wish = "auto",
    **options: Any,  # of the one that is chosen
) -> Runner:
    """A model in bitnet.cpp, in the best way that can be had.

    Raises:
        ReferenceUnavailableError: As `choose`, or it refuses the model.
        ReferenceFailedError: Its server dies or hangs.
    """
    if not Path(model).is_file():
        raise ReferenceUnavailableError(f"there is no model file {model}")
    way = choose(directory, wish)
    if way.binary is None:
        return BitnetCpp(model, directory=way.root, **options)
    return BitnetCppServer(model, way.binary, why=way.why, **options)
