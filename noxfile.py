"""Every task of the project: `nox -l` lists them, `nox -s NAME` runs one and sets up all that it needs.

Versions live in pyproject.toml and requirements.lock. An environment is installed once and installed again only
when one of the two, or the interpreter, changed; so a warm start costs a second or two.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path

import nox
from nox.command import CommandFailed

nox.needs_version = ">=2026.7.11"  # CommandFailed knows its return code
nox.options.sessions = ["lint", "typing", "tests", "crossval"]
nox.options.reuse_venv = "yes"
nox.options.default_venv_backend = "virtualenv"  # the same everywhere, whether or not uv is about

ROOT = Path(__file__).parent
RECEIPT = Path("ci/inference.json")
PYPROJECT = nox.project.load_toml("pyproject.toml")
FUZZING = (
    ("--target=container", "--runs=1800000"),
    ("--target=model", "--runs=300000"),
    ("--target=files", "--runs=100000"),
    ("--target=receipt", "--runs=2000000", "--seconds=14400"),
)
REFERENCE_UNAVAILABLE = 4  # the exit code of a run that could not conclude anything


@nox.session
def crossval(session: nox.Session) -> None:
    """Climb the ladder against live references; write ci/inference.json and build/crossval/."""
    try:
        install(session)
    except CommandFailed:
        sys.exit(REFERENCE_UNAVAILABLE)  # the index or the network failed, not the comparison
    use_llama_cpp(session)
    before = modified(RECEIPT)
    code = code_of(session, "crossval", "run", "--no-hf", *session.posargs)
    if modified(RECEIPT) != before:  # a comparison that failed is shown too, one that never ran is not
        shown = code_of(session, "reports", "table", str(RECEIPT))
        built = code_of(session, "reports", "build", str(RECEIPT), "--out", "build/crossval")
        code = code or built or shown
    leave(code)


@nox.session(name="crossval-hf", default=False)
def crossval_hf(session: nox.Session) -> None:
    """Climb the ladder against transformers too; write build/crossval-hf/inference.json."""
    try:
        install_once(session, "extras", *PYPROJECT["project"]["optional-dependencies"]["hf"])
        install(session)
    except CommandFailed:
        sys.exit(REFERENCE_UNAVAILABLE)
    use_llama_cpp(session)
    receipt = "build/crossval-hf/inference.json"
    leave(code_of(session, "crossval", "run", "--hf", "--receipt", receipt, *session.posargs))


@nox.session
def tests(session: nox.Session) -> None:
    """Run all tests, or what is asked for: nox -s tests -- -m "not slow"."""
    install(session, "test")
    use_llama_cpp(session)
    everything = (
        "-m",
        "not hf and not neon and not browser",
        "--numprocesses=logical",
        "--maxprocesses=4",
        "--dist=loadfile",
    )
    session.run("python", "-m", "pytest", *(session.posargs or everything))


@nox.session
def lint(session: nox.Session) -> None:
    """Check the style and the formatting."""
    install(session, "lint", project=False)
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session
def typing(session: nox.Session) -> None:
    """Check the types, strictly."""
    install(session, "typing")
    session.run("mypy", *session.posargs)


@nox.session(default=False)
def bench(session: nox.Session) -> None:
    """Measure the engine and llama.cpp side by side, in one run."""
    install(session)
    use_llama_cpp(session)
    leave(code_of(session, "bitnet", "benchmark", "compare", *(session.posargs or ("--shape", "2b-4t"))))


@nox.session(default=False)
def drift(session: nox.Session) -> None:
    """Measure how often known defects are detected, located and named: nox -s drift -- --evidence logits."""
    install(session)
    leave(code_of(session, "crossval", "drift", *session.posargs))


@nox.session(default=False)
def fuzz(session: nox.Session) -> None:
    """Fuzz the readers, 4.2 million executions unless told: nox -s fuzz -- --target receipt --runs 100000."""
    install(session, "fuzz")
    try:
        session.run("python", "-c", "import atheris", silent=True)
        engine = "atheris"
    except CommandFailed:
        session.warn("atheris is not available here: damage will be random, without a guide.")
        engine = "hypothesis"
    for arguments in [session.posargs] if session.posargs else FUZZING:
        session.run("python", "tests/fuzz_run.py", "--engine", engine, *arguments)


@nox.session(default=False)
def tamper(session: nox.Session) -> None:
    """Tamper with real receipts 10⁵ times and print what was caught: nox -s tamper -- --runs 10000 --missed."""
    install(session, "test")
    session.run("python", "tests/tamper_run.py", *session.posargs)


@nox.session(default=False)
def fixtures(session: nox.Session) -> None:
    """Rebuild the fixture models from nothing: text, training, every file."""
    install(session, "train")
    session.run("python", "-m", "fixtures.build", *session.posargs)


@nox.session(default=False)
def fixtures_hf(session: nox.Session) -> None:
    """Rebuild fixtures/hf with transformers itself: checkpoints, and what it computes on them."""
    install_once(session, "extras", *PYPROJECT["project"]["optional-dependencies"]["hf"])
    install(session)
    session.run("python", "-m", "fixtures.hf.build", *session.posargs)


@nox.session(default=False)
def hf(session: nox.Session) -> None:
    """Run the tests that need torch and transformers: checkpoints as transformers writes and computes them today."""
    install_once(session, "extras", *PYPROJECT["project"]["optional-dependencies"]["hf"])
    install(session, "test")
    session.run("python", "-m", "pytest", "-m", "hf", *session.posargs)


@nox.session(default=False)
def neon(session: nox.Session) -> None:
    """Run the ARM kernels under an emulator (Debian: qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross)."""
    for program in ("qemu-aarch64", "aarch64-linux-gnu-gcc"):
        if shutil.which(program) is None:
            session.error(
                f"{program} is missing: apt-get install qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
            )
    install(session, "test")
    session.run("python", "-m", "pytest", "-m", "neon", *session.posargs)


@nox.session(default=False)
def browser(session: nox.Session) -> None:
    """Open the HTML pages in a headless Chromium (Debian: chromium chromium-driver); pictures go to build/browser/."""
    for program in ("chromium", "chromedriver"):
        if shutil.which(program) is None:
            session.skip(f"{program} is not installed: apt-get install chromium chromium-driver")
    install(session, "browser")
    session.run("python", "-m", "pytest", "-m", "browser", "tests/test_browser.py", *session.posargs)


@nox.session(default=False)
def wheel(session: nox.Session) -> None:
    """Build the wheel and the sdist into dist/, check what the wheel holds, and what it does installed alone."""
    install(session, "test")
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    session.run("python", "-m", "build", "--no-isolation", "--outdir", "dist")
    [built] = (ROOT / "dist").glob("*.whl")
    folder = Path(session.create_tmp()).resolve() / "alone"
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    session.run("python", "-m", "venv", "--clear", str(folder))
    session.run(
        str(python), "-m", "pip", "install", "--quiet", "--constraint", "requirements.lock", str(built), external=True
    )
    session.env["WHEEL_PYTHON"] = str(python)
    tests = ("tests/test_wheel.py", "tests/test_ci_examples.py")
    session.run("python", "-m", "pytest", "-m", "", *tests, *session.posargs)


def install(session: nox.Session, *groups: str, project: bool = True) -> None:
    """Install dependency groups, and the project in place, under the lock."""
    session.env["OPENBLAS_NUM_THREADS"] = "1"  # the oracle's small products lose more to threads than they gain
    packages = nox.project.dependency_groups(PYPROJECT, *groups)
    install_once(session, "packages", *packages, *(("--editable", ".") if project else ()))


def install_once(session: nox.Session, name: str, *arguments: str, env: dict[str, str] | None = None) -> None:
    """Run pip unless it did the same here before, from the same pyproject.toml and requirements.lock."""
    key = hashlib.sha256("\n".join((sys.version, *arguments)).encode())
    for file in ("pyproject.toml", "requirements.lock"):
        key.update((ROOT / file).read_bytes())
    stamp = Path(session.virtualenv.location) / f"{name}.installed"
    if not stamp.exists() or stamp.read_text() != key.hexdigest():
        # Byte code is left to the first import: most modules never are, and it is half of pip's time.
        session.install("--no-compile", "--constraint", "requirements.lock", *arguments, env=env)
        stamp.write_text(key.hexdigest())


def use_llama_cpp(session: nox.Session) -> None:
    """Make llama.cpp importable: its Python package here, its library built once into the user's cache.

    Without a compiler this warns and goes on: the lanes against llama.cpp then say that they could not run.
    A library of the user's own is named by LLAMA_CPP_LIB_PATH.
    """
    python_only = {"CMAKE_ARGS": "-DLLAMA_BUILD=OFF -DLLAVA_BUILD=OFF"}
    extra = PYPROJECT["project"]["optional-dependencies"]["llama-cpp"]
    try:
        # pip would keep this wheel without a library and hand it to the user's other projects: hence no cache.
        install_once(session, "llama-cpp", "--no-cache-dir", *extra, env=python_only)
        # Its progress goes to stderr and is shown; the last line of stdout is the folder.
        answer = session.run("python", "-m", "reference.llama_cpp_build", silent=True, stderr=None, log=False)
        session.env["LLAMA_CPP_LIB_PATH"] = str(answer).strip().split("\n")[-1]
    except CommandFailed:
        session.warn("llama.cpp could not be set up (see above): what is compared with it will be `unsupported`.")


def modified(path: Path) -> int:
    """When a file was last written, ns; 0 where there is none."""
    return path.stat().st_mtime_ns if path.exists() else 0


def leave(code: int) -> None:
    """End nox with a code of the design, unless all is well and other sessions may follow."""
    if code:
        sys.exit(code)


def code_of(session: nox.Session, *arguments: str) -> int:
    """Run a command of the project for its own exit code, where nox would turn any failure into 1."""
    try:
        session.run("python", "-m", *arguments)
    except CommandFailed as failure:
        return failure.return_code or 1
    return 0
