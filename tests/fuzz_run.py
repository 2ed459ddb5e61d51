"""Fuzz the reader: `python tests/fuzz_run.py --runs 200000 --target model`, or as `nox -s fuzz`.

With atheris, inputs that reach new branches are kept and changed further; with `--engine hypothesis`, which runs where
atheris cannot be installed, valid files are damaged at random. Either way any error but the package's own, more than a
second of CPU, or a leap of memory ends the run, and the input is written into the folder of findings, where the tests
will find it.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
FINDINGS = ROOT / "fixtures" / "fuzz"
MAX_INPUT = {
    "container": 8_192,
    "model": 32_768,
    "files": 16_384,
    "receipt": 12_288,
}  # bytes; more makes it slow, and finds no more
BATCH = {
    "container": 150_000,
    "model": 40_000,
    "files": 20_000,
    "receipt": 400_000,
}  # executions of one process: atheris keeps some memory after each
#: What reads the file. The kernels are left out: numba compiles their byte code, so it must stay as it is.
INSTRUMENTED = (
    *("bitnet.gguf", "bitnet.gguf_header", "bitnet.gguf_layout", "bitnet.gguf_shards", "bitnet.gguf_strings"),
    *("bitnet.gguf_types", "bitnet.architecture", "bitnet.weights", "bitnet.weight_statistics", "bitnet.validate"),
    *("bitnet.vocabulary", "bitnet.tokenizer", "bitnet.tokenizer_spm", "bitnet.pretokenizers", "bitnet.chat"),
    *("bitnet.formats", "bitnet.pre_evidence", "bitnet.codecs", "bitnet.hf", "bitnet.hf_config", "bitnet.hf_weights"),
    *("bitnet.hf_tokenizer", "bitnet.master_weights", "bitnet.safetensors_file", "bitnet.tokenizer_files"),
    *("bitnet.tokenizer_json", "bitnet.tokenizer_model"),
    *("receipts.codec", "receipts.read", "receipts.record", "receipts.summary", "receipts.sign", "receipts.check_runs"),
    *("receipts.check_lanes", "receipts.check_ledger", "receipts.check_agreement", "receipts.check_subject"),
    *("receipts.check_speed", "receipts.check_witnesses"),
)


class Hang(Exception):  # noqa: N818  # what a fuzzer is after
    """An input that does not come to an end."""


def on_hang(*_: object) -> None:
    """What the timer of CPU time calls."""
    raise Hang("over 2 s of CPU")


def keep(raw: bytes, target: str) -> Path:
    """Write an input that is a finding."""
    FINDINGS.mkdir(parents=True, exist_ok=True)
    kind = target if target in ("files", "receipt") else "gguf"  # the tests take it to the same target
    path = FINDINGS / f"found-{hashlib.sha256(raw).hexdigest()[:16]}.{kind}"
    path.write_bytes(raw)
    return path


def with_atheris(arguments: argparse.Namespace) -> None:
    """Coverage-guided, one process after another; each goes on with the corpus of the one before."""
    begin, done, seed = time.monotonic(), 0, arguments.seed
    while done < arguments.runs and (left := arguments.seconds - int(time.monotonic() - begin)) > 0:
        runs = min(BATCH[arguments.target], arguments.runs - done)
        options = {"engine": "batch", "target": arguments.target, "runs": runs, "seconds": left, "seed": seed}
        command = [
            sys.executable,
            __file__,
            *(f"--{k}={v}" for k, v in options.items()),
            f"--folder={arguments.folder}",
        ]
        ended = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        executed = re.search(r"number_of_executed_units:\s*(\d+)", ended.stderr)
        done += int(executed[1]) if executed else 0
        coverage = (re.findall(r"cov: (\d+) ft: (\d+)", ended.stderr) or [("?", "?")])[-1]
        print(f"{done} executions, {coverage[0]} branches, {coverage[1]} features", flush=True)
        if ended.returncode or not executed:
            sys.exit(f"{ended.stderr[-4000:]}\na finding, or no run at all: see above")
        seed += 1
    print(f"{done} executions of {arguments.target}, 0 findings")


def batch(arguments: argparse.Namespace) -> None:
    """One process of `with_atheris`; libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        from fuzz_target import examine
    from fuzz_seeds import write_corpus

    FINDINGS.mkdir(parents=True, exist_ok=True)  # libFuzzer wants it to be there
    write_corpus(arguments.folder / f"seeds-{arguments.target}", arguments.target)
    corpus = arguments.folder / f"corpus-{arguments.target}"
    corpus.mkdir(exist_ok=True)

    def one(raw: bytes) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, 2.0)  # the process may be paused, so hours of wall time mean nothing
        try:
            examine(raw, arguments.target)
        except Exception:
            print(f"finding: {keep(raw, arguments.target)}", file=sys.stderr)
            raise
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)

    signal.signal(signal.SIGVTALRM, on_hang)
    flags = [
        f"-runs={arguments.runs}",
        f"-max_total_time={arguments.seconds}",
        f"-max_len={MAX_INPUT[arguments.target]}",
        "-timeout=7200",  # of wall time, for code that never comes back to Python; the target allows 1 s of CPU
        "-report_slow_units=7200",  # likewise: else a busy machine leaves files among the findings
        "-rss_limit_mb=2048",
        f"-dict={arguments.folder / 'dictionary.txt'}",
        f"-artifact_prefix={FINDINGS}/",
        "-print_final_stats=1",
        f"-seed={arguments.seed}",
    ]
    atheris.Setup([sys.argv[0], *flags, str(corpus), str(arguments.folder / f"seeds-{arguments.target}")], one)
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
    @hypothesis.given(damaged(arguments.target))
    def one(raw: bytes) -> None:
        nonlocal done
        if time.monotonic() - begin > arguments.seconds:
            return
        done += 1
        try:
            examine(raw, arguments.target)
        except Exception:
            print(f"finding: {keep(raw, arguments.target)}", file=sys.stderr)
            raise

    one()
    print(f"{done} executions, 0 findings")


def main() -> None:
    """Choose the engine and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=["atheris", "batch", "hypothesis"], default="atheris")
    parser.add_argument("--target", choices=list(BATCH), default="model", help="how far inputs are taken")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=6 * 3600, help="of wall time, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "fuzz", help="of seeds and corpus")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    {"atheris": with_atheris, "batch": batch, "hypothesis": with_hypothesis}[arguments.engine](arguments)


if __name__ == "__main__":
    main()
