"""`pytest --bitnet-crossval model.gguf`: every lane and rung of a comparison as a test, and the gate as one more.

The comparison runs once, when its first test does, and leaves a receipt; every test then looks at that. Under
pytest-xdist one worker runs it and the others wait for the receipt. A rung that could not be tried is skipped, and
fails instead where it is required; a rung of a lane that deviates exactly as declared is an expected failure. Without
`--bitnet-crossval` this module adds its options and imports nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from crossval.plan import LanePlan
    from crossval.run import Run
    from receipts.record import Lane, Receipt, Rung

_NAME = "bitnet-crossval"
_RUNNING = pytest.StashKey["Comparison"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, in a group of their own."""
    group = parser.getgroup(_NAME, "comparison of BitNet engines")
    group.addoption(
        "--bitnet-crossval",
        action="append",
        default=[],
        metavar="MODEL",
        help="A GGUF file: compare the engine with every reference on it, one test a lane and rung. May be repeated. "
        "Unless files are named too, nothing else is collected.",
    )
    group.addoption(
        "--bitnet-crossval-reference",
        action="append",
        default=[],
        metavar="NAME",
        help="Only lanes against references whose name contains this (oracle, 'llama.cpp F32'); may be repeated.",
    )
    group.addoption(
        "--bitnet-crossval-policy",
        default="strict",
        metavar="POLICY",
        help="Policy of the gate: a TOML file, or a shipped one by its name. Default: strict.",
    )
    group.addoption(
        "--bitnet-crossval-receipt",
        metavar="FILE",
        help="Where the receipt goes. Default: pytest's temporary folder.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Plan the lanes, where a model is named. A model that cannot be read is a usage error."""
    if config.getoption("--bitnet-crossval") and not config.option.help:
        from bitnet.errors import BitNetError
        from receipts.errors import ReceiptError

        try:
            config.stash[_RUNNING] = Comparison(config)
        except (BitNetError, ReceiptError) as error:
            raise pytest.UsageError(str(error)) from None


def pytest_ignore_collect(config: pytest.Config) -> bool | None:
    """Where no files are named, the comparison is all that is asked for."""
    if _RUNNING in config.stash and config.args_source is not config.ArgsSource.ARGS:
        return True
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(session: pytest.Session, config: pytest.Config, items: list[pytest.Item]) -> None:
    """Enter the tests, before others choose among them by name or mark."""
    comparison = config.stash.get(_RUNNING, None)
    if comparison is not None:
        root = Folder.from_parent(session, name=_NAME, nodeid=_NAME)
        for plan in comparison.plans:
            lane = Folder.from_parent(root, name=plan.name)
            items += [RungTest.from_parent(lane, name=name, lane=plan.name) for name in comparison.rungs]
        items += [ReceiptTest.from_parent(root, name="receipt"), GateTest.from_parent(root, name="gate")]


class Comparison:
    """The run behind the tests: planned at once, climbed when it is needed, and only in one process."""

    def __init__(self, config: pytest.Config) -> None:
        from crossval.run import Run
        from receipts.policy import read_policy
        from receipts.record import RUNGS

        self.config, self.rungs = config, RUNGS
        self.policy = read_policy(config.getoption("--bitnet-crossval-policy"))
        self.wanted: list[str] = config.getoption("--bitnet-crossval-reference")
        self.plans = self._plans(Run(self._options(Path()), lambda _: None))
        self._receipt: Receipt | None = None

    def _options(self, receipt: Path) -> Any:  # noqa: ANN401  # crossval.run.Options; not imported for a type
        from crossval.commands import FIXTURES
        from crossval.run import Options

        cache = getattr(self.config, "cache", None)
        work = cache.mkdir(_NAME) if cache is not None else receipt.parent / "models"
        models = tuple(map(Path, self.config.getoption("--bitnet-crossval")))
        return Options(fixtures=FIXTURES, models=models, receipt=receipt, work=work)

    def _plans(self, run: Run) -> list[LanePlan]:
        from bitnet.errors import UsageError

        planned = run.plan()
        kept = [plan for plan in planned if not self.wanted or any(word in plan.reference for word in self.wanted)]
        if not kept:
            known = ", ".join(sorted({plan.reference.partition(" · ")[0] for plan in planned}))
            raise UsageError(
                f"no reference is called {' or '.join(map(repr, self.wanted))}",
                where="--bitnet-crossval-reference",
                remedy=f"there are {known}",
            )
        return kept

    def path(self, temporary: pytest.TempPathFactory) -> Path:
        """Where the receipt is; the same in every worker of one test run."""
        named = self.config.getoption("--bitnet-crossval-receipt")
        folder = temporary.getbasetemp()
        shared = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
        return Path(named).absolute() if named else shared / _NAME / "inference.json"

    def receipt(self, temporary: pytest.TempPathFactory) -> Receipt:
        """The receipt of this test run, made by whoever comes first."""
        if self._receipt is None:
            from receipts import read

            folder = temporary.getbasetemp()
            mark = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / f"{_NAME}.done"
            with _alone(mark.with_suffix(".lock")):
                if not mark.exists():
                    mark.write_text(self._run(self.path(temporary)), encoding="utf-8")
            if trouble := mark.read_text(encoding="utf-8"):
                raise BrokenRungError(trouble)
            self._receipt = read(self.path(temporary))
        return self._receipt

    def _run(self, path: Path) -> str:
        """Climb all lanes and write the receipt; returns what went wrong, "" if nothing did."""
        import time

        from bitnet.errors import BitNetError
        from crossval.environment import now
        from crossval.run import Run
        from receipts.errors import ReceiptError

        started, began = now(), time.monotonic()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            run = Run(self._options(path), lambda _: None)
            for plan in self._plans(run):
                run.climb(plan)
            run.receipt(started, time.monotonic() - began)
        except (BitNetError, ReceiptError, OSError) as error:
            return f"the comparison could not be made: {error}"
        return ""


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process at a time; a lock whose holder died is free."""
    with lock.open("w") as stream:
        try:
            import fcntl
        except ImportError:  # no such locks here: without them every worker would run all lanes, as with no xdist
            yield
            return
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


class BrokenRungError(Exception):
    """What a test found; its text is all that a person needs to see."""


class Folder(pytest.Collector):
    """The comparison, or a lane of it."""

    def collect(self) -> list[pytest.Item]:
        """Nothing: the tests are entered one by one."""
        return []


class _Test(pytest.Item):
    """A test that looks at the receipt."""

    def setup(self) -> None:
        """The comparison, unless another test had it run."""
        comparison = self.config.stash[_RUNNING]
        factory: pytest.TempPathFactory = self.config._tmp_path_factory  # type: ignore[attr-defined]  # no fixture here
        self.path_of_receipt = comparison.path(factory)
        self.receipt = comparison.receipt(factory)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:  # noqa: ANN401  # pytest's
        """The sentence of a finding; a fault of this program keeps its traceback."""
        return (
            str(excinfo.value) if isinstance(excinfo.value, BrokenRungError) else super().repr_failure(excinfo, style)
        )

    def reportinfo(self) -> tuple[str, None, str]:
        """As the summary names it."""
        return _NAME, None, self.nodeid.removeprefix(f"{_NAME}::")


class RungTest(_Test):
    """One rung of one lane."""

    def __init__(self, *, lane: str, **named: Any) -> None:
        super().__init__(**named)
        self.lane = lane

    def runtest(self) -> None:
        """Pass only where the rung did."""
        lane = next(lane for lane in self.receipt.lanes if lane.name == self.lane)
        rung = next(rung for rung in lane.rungs if rung.name == self.name)
        if rung.outcome == "pass":
            return
        if lane.deviates_as_declared and lane.known_deviation is not None:
            pytest.xfail(f"deviates as declared, proven again: {lane.known_deviation.reason}")
        if not lane.required:
            pytest.xfail(f"the lane is not required: {rung.outcome}, {rung.why}")
        if rung.outcome in ("fail", "error") or rung.name in lane.required_rungs:
            raise BrokenRungError(_told(lane, rung))
        pytest.skip(f"{rung.outcome}: {rung.why}")


class ReceiptTest(_Test):
    """Whether the receipt is true, as far as it can be recomputed."""

    def runtest(self) -> None:
        """Every finding that is not the gate's."""
        from receipts.verify import verify

        report = verify(self.path_of_receipt, gate=False)
        if not report.valid:
            found = "\n".join(f"  {check.name}: {check.message} in '{check.path}'" for check in report.failures)
            raise BrokenRungError(f"{self.path_of_receipt} is invalid:\n{found}")


class GateTest(_Test):
    """Whether the policy is met."""

    def runtest(self) -> None:
        """Every demand that is not met."""
        from receipts.gate import gate

        policy = self.config.stash[_RUNNING].policy
        unmet = [demand for demand in gate(self.receipt, policy) if demand.outcome != "pass"]
        if unmet:
            found = "\n".join(f"  {demand.name.removeprefix('gate.')}: {demand.why}" for demand in unmet)
            raise BrokenRungError(f"the policy {policy.name} is not met:\n{found}")


def _told(lane: Lane, rung: Rung) -> str:
    """What a person needs to know of a rung that did not pass."""
    needed = "" if rung.outcome in ("fail", "error") else ", and it is required"
    lines = [f"{lane.name}: {rung.name} ended as {rung.outcome}{needed}", f"  {rung.why}"]
    if rung.measured is not None and rung.limit is not None:
        lines.append(f"  {rung.metric}: {rung.measured:.3g} measured, {rung.limit:.3g} allowed")
    if rung.outcome == "fail" and lane.located is not None:
        found = lane.located
        where = f"{found.tap} of layer {found.layer}" if found.layer >= 0 else found.tap
        lines.append(f"  first wrong operation: {where}, off by {found.max_abs_err:.3g} of {found.max_abs_ref:.3g}")
    if rung.outcome == "fail" and lane.blame is not None:
        lines.append(f"  wrong is the {lane.blame}, as the others agree")
    if rung.outcome == "fail" and lane.cause is not None and lane.cause.name:
        cause = lane.cause
        lines.append(f"  cause: {cause.name} explains {cause.explained:.1%} of it; {cause.explanation}")
    return "\n".join(lines)
