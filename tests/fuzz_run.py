"""Fuzz the reader: `python tests/fuzz_run.py --runs 200000 --target model`, or as `nox -s fuzz`.

With atheris, inputs that reach new branches are kept and changed further; without it, or with `--engine hypothesis`,
valid files are damaged at random. Either way any error but the package's own, more than a second of CPU, or a leap of
memory ends the run, and the input is written into the folder of findings, where the tests will find it.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
FINDINGS = ROOT / "fixtures" / "fuzz"
MAX_INPUT = 32_768  # bytes; every seed but one is shorter
#: What reads the file. The kernels are left out: numba compiles their byte code, so it must stay as it is.
INSTRUMENTED = (
    *("bitnet.gguf", "bitnet.gguf_header", "bitnet.gguf_layout", "bitnet.gguf_shards", "bitnet.gguf_strings"),
    *("bitnet.gguf_types", "bitnet.architecture", "bitnet.weights", "bitnet.weight_statistics", "bitnet.validate"),
    *("bitnet.vocabulary", "bitnet.tokenizer", "bitnet.tokenizer_spm", "bitnet.pretokenizers", "bitnet.chat"),
    "bitnet.codecs",
)


def keep(raw: bytes) -> Path:
    """Write an input that is a finding."""
    FINDINGS.mkdir(parents=True, exist_ok=True)
    path = FINDINGS / f"found-{hashlib.sha256(raw).hexdigest()[:16]}.gguf"
    path.write_bytes(raw)
    return path


def with_atheris(arguments: argparse.Namespace) -> None:
    """Coverage-guided; libFuzzer ends the process itself."""
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        from fuzz_target import examine
    from fuzz_seeds import write_corpus

    write_corpus(arguments.folder / "seeds")
    corpus = arguments.folder / f"corpus-{arguments.target}"
    corpus.mkdir(exist_ok=True)

    def one(raw: bytes) -> None:
        try:
            examine(raw, container=arguments.target == "container")
        except Exception:
            print(f"finding: {keep(raw)}", file=sys.stderr)
            raise

    flags = [
        f"-runs={arguments.runs}",
        f"-max_total_time={arguments.seconds}",
        f"-max_len={MAX_INPUT}",
        "-timeout=30",  # of wall time; the target itself allows a second of CPU
        "-rss_limit_mb=2048",
        f"-dict={arguments.folder / 'dictionary.txt'}",
        f"-artifact_prefix={FINDINGS}/",
        "-print_final_stats=1",
        f"-seed={arguments.seed}",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus), str(arguments.folder / "seeds")], one)
    atheris.Fuzz()


def with_hypothesis(arguments: argparse.Namespace) -> None:
    """Random damage, without any guide but the places where things lie."""
    import hypothesis
    from fuzz_damage import damaged
    from fuzz_target import examine

    begin, done = time.monotonic(), 0

    @hypothesis.seed(arguments.seed)
    @hypothesis.settings(
        max_examples=arguments.runs,
        deadline=None,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(damaged())
    def one(raw: bytes) -> None:
        nonlocal done
        if time.monotonic() - begin > arguments.seconds:
            return
        done += 1
        try:
            examine(raw, container=arguments.target == "container")
        except Exception:
            print(f"finding: {keep(raw)}", file=sys.stderr)
            raise

    one()
    print(f"{done} executions, 0 findings")


def main() -> None:
    """Choose the engine and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=["atheris", "hypothesis"], default="atheris")
    parser.add_argument("--target", choices=["container", "model"], default="model", help="how far inputs are taken")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=3600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz", help="of seeds and corpus")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    {"atheris": with_atheris, "hypothesis": with_hypothesis}[arguments.engine](arguments)


if __name__ == "__main__":
    main()
