"""ggml's own parser on untrusted files: run as a program, it answers a line for each path it is given on its input.

`verdicts` starts it, and starts it again after a file that made it abort.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: What became of a file: its tensors by name as (type, rows, columns, offset, bytes), or how it was refused.
Verdict = dict[str, tuple[int, ...]] | str
ROOT = Path(__file__).parents[1]
SECONDS = 120.0  # for all files of one process; ggml reads thousands in one


def verdicts(paths: Sequence[Path]) -> list[Verdict]:
    """ggml's answer on each file: its tensors, `refused`, or `aborted` where it ended the process."""
    found: list[Verdict] = []
    while len(found) < len(paths):
        left = paths[len(found) :]
        done = subprocess.run(
            [sys.executable, __file__],
            input="\n".join(map(str, left)),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            timeout=SECONDS,
            cwd=ROOT,
            check=False,
        )
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        found += [a if isinstance(a, str) else {name: tuple(entry) for name, entry in a.items()} for a in answers]
        if done.returncode and len(answers) < len(left):
            if done.returncode > 0:
                raise RuntimeError(f"the library could not be asked: exit {done.returncode}")
            found.append("aborted")
    return found


def main() -> None:
    """Answer until the input ends."""
    import ctypes

    sys.path.insert(0, str(ROOT))
    from reference.ggml import Ggml
    from reference.llama_cpp_build import ensure_library
    from reference.runner import ReferenceUnavailableError

    folder = ensure_library()
    library = next(path for path in folder.iterdir() if path.name in {"libllama.so", "libllama.dylib"})
    ctypes.CDLL(str(library))
    ggml = Ggml(folder)
    for line in sys.stdin.read().splitlines():
        answer: Any
        try:
            answer = {name: (t.type, *t.shape, t.offset, t.n_bytes) for name, t in ggml.tensors(Path(line)).items()}
        except ReferenceUnavailableError:
            answer = "refused"
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
