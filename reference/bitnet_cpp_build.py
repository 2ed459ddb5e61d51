"""Finds a llama.cpp of whatever age in a folder, and compiles our small C interface against its own headers.

`BITNET_CPP_DIR` names a tree of bitnet.cpp (or of llama.cpp) with its build inside, or an installed prefix with
`include/` and `lib/`. Its C interface changes from year to year, so `shim.cpp` is compiled here, once: the result lies
in the user's cache, under a hash of the shim, the headers, the library and the compiler.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from reference.ggml import file_sha256
from reference.llama_cpp_build import find_compiler
from reference.runner import ReferenceUnavailableError

DIRECTORY_VARIABLE = "BITNET_CPP_DIR"
SHIM = Path(__file__).with_name("shim.cpp")

#: Names whose presence in the headers decides how the shim is compiled.
FEATURES = (
    "llama_model_load_from_file",
    "llama_init_from_model",
    "llama_model_get_vocab",
    "flash_attn_type",
    "flash_attn",
    "op_offload",
    "GGML_TYPE_I2_S",
)

#: Where trees keep llama.h.
_LLAMA_H = ("3rdparty/llama.cpp/include", "llama.cpp/include", "include", "3rdparty/llama.cpp", ".")
_LIBRARY = re.compile(r"lib(llama|ggml[\w-]*)\.(so|dylib)")
_MAX_DEPTH = 6
_SECONDS = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """What was found.

    Attributes:
        root: The folder.
        includes: Folders of llama.h and ggml.h.
        libraries: libllama first, then the parts of ggml beside or below it.
        features: Which of `FEATURES` the headers declare.
    """

    root: Path
    includes: tuple[Path, ...]
    libraries: tuple[Path, ...]
    features: frozenset[str]

    @property
    def fork(self) -> bool:
        """Whether this is bitnet.cpp's fork: it knows the type I2_S."""
        return "GGML_TYPE_I2_S" in self.features


def declared() -> Path | None:
    """The folder that `BITNET_CPP_DIR` names, if it names one."""
    value = os.environ.get(DIRECTORY_VARIABLE)
    return Path(value) if value else None


def find_tree(root: Path) -> Tree:
    """Headers and libraries of a folder.

    Raises:
        ReferenceUnavailableError: There are none, or they were not built.
    """
    if not root.is_dir():
        raise ReferenceUnavailableError(
            f"{DIRECTORY_VARIABLE} is {str(root)!r}, where there is no folder",
            remedy="name a tree of bitnet.cpp with its build inside",
        )
    llama_h = next((root / place for place in _LLAMA_H if (root / place / "llama.h").is_file()), None)
    if llama_h is None:
        raise ReferenceUnavailableError(
            f"there is no llama.h in {root}", remedy="check out its submodules: git submodule update --init --recursive"
        )
    near = (llama_h, llama_h / "../ggml/include", llama_h.parent / "ggml/include", llama_h / "ggml/include")
    ggml_h = next((folder for folder in near if (folder / "ggml.h").is_file()), None)
    if ggml_h is None:
        raise ReferenceUnavailableError(f"there is a llama.h in {llama_h}, but no ggml.h beside it")
    found = _libraries(root)
    if not found:
        raise ReferenceUnavailableError(
            f"there is no libllama in {root}", remedy="build it there with BUILD_SHARED_LIBS=ON, target llama"
        )
    includes = tuple(dict.fromkeys((llama_h.resolve(), ggml_h.resolve())))
    return Tree(root=root, includes=includes, libraries=found, features=features(includes))


def _libraries(root: Path) -> tuple[Path, ...]:
    """The newest libllama, and the newest of every libggml."""
    newest: dict[str, Path] = {}
    for path in files(root):
        match = _LIBRARY.fullmatch(path.name)
        if match and (match[1] not in newest or path.stat().st_mtime > newest[match[1]].stat().st_mtime):
            newest[match[1]] = path
    if "llama" not in newest:
        return ()
    return tuple(newest[name] for name in sorted(newest, key=lambda name: (name != "llama", name)))


def files(folder: Path, depth: int = _MAX_DEPTH) -> Iterator[Path]:
    """The files of a tree, not too deep, and without what is hidden."""
    try:
        children = sorted(folder.iterdir())
    except OSError:  # a folder that may not be read holds nothing for us
        return
    for child in children:
        if child.is_dir():
            if depth and not child.name.startswith("."):
                yield from files(child, depth - 1)
        elif child.is_file():
            yield child


def features(includes: tuple[Path, ...]) -> frozenset[str]:
    """Which of `FEATURES` a set of headers declares, comments aside."""
    text = "\n".join(header.read_text("utf-8", "replace") for header in _headers(includes))
    code = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    words = set(re.findall(r"\w+", code))
    return frozenset(name for name in FEATURES if name in words)


def _headers(includes: tuple[Path, ...]) -> list[Path]:
    return sorted({path for folder in includes for path in folder.glob("*.h")})


def compile_shim(tree: Tree) -> Path:
    """The shim for a tree, compiled unless that was done before.

    Raises:
        ReferenceUnavailableError: There is no compiler, or it refuses.
    """
    compiler, version = find_compiler()
    key = hashlib.sha256("\0".join((version, *sorted(tree.features))).encode())
    for path in (SHIM, *_headers(tree.includes), *tree.libraries):
        key.update(file_sha256(path).encode())
    key.update("\0".join(str(path.resolve()) for path in tree.libraries).encode())  # they are named inside
    folder = Path(platformdirs.user_cache_dir("bitnet-crossval")) / "shim"
    target = folder / f"{key.hexdigest()[:24]}.so"
    if target.is_file():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made = Path(scratch) / target.name
        command = [
            *(compiler, "-std=c++17", "-O1", "-shared", "-fPIC", "-w", "-o", str(made), str(SHIM)),
            *(f"-I{include}" for include in tree.includes),
            *(f"-DHAVE_{name}" for name in sorted(tree.features)),
            *(str(library) for library in tree.libraries),
            *(f"-Wl,-rpath,{place}" for place in dict.fromkeys(path.parent.resolve() for path in tree.libraries)),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)  # noqa: S603  # our own arguments
        except subprocess.TimeoutExpired as error:
            raise ReferenceUnavailableError(f"{compiler} did not end within {_SECONDS:g} s") from error
        if done.returncode != 0:
            errors = [line for line in done.stderr.splitlines() if "error" in line or "undefined" in line]
            why = (errors or done.stderr.splitlines() or ["it does not say why"])[0].replace(f"{SHIM}:", "shim.cpp:")
            raise ReferenceUnavailableError(
                f"the interface to {tree.root} does not compile: {why}",
                remedy="build the tree's libllama from the headers that lie in it",
            )
        made.replace(target)  # whole or not at all
    return target


def version_of(root: Path) -> str:
    """The commit of a tree, where git knows it and the tree is not a part of another repository."""
    unknown = "of an unknown commit"
    git = shutil.which("git")
    if git is None:
        return unknown
    command = (git, "-C", str(root), "log", "-1", "--format=%h of %cs")
    if not (root / ".git").exists():
        return unknown
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # our own arguments
    return f"commit {done.stdout.strip()}" if done.returncode == 0 else unknown
