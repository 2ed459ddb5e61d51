"""What a gate asks of a receipt, as a TOML file that a reviewer can read.

`strict` is asked where no other policy is named; it and `release`, which wants more evidence, are shipped beside this
module. A policy of one's own may say:

    version = 1
    name = "ours"

    [[lanes]]                       # lanes by pattern; those that the receipt itself requires are always asked
    match = "* · oracle"            # fnmatch; at least one lane must fit
    rungs = ["weights", "operations"]   # that must pass; default: those that the receipt requires

    [limits]                        # ceilings for `measured` and for the limit a rung was judged by
    operations = 1e-6

    [evidence]                      # no less than this
    cases = 10
    live = 1                        # references that ran, not recordings
    determinism = 1                 # trials
    accuracy = 1                    # kernels measured
    tokens = 1000                   # that the engine evaluated
    age_days = 7                    # at most
    clean = true                    # from a checkout without changes

    [near_ties]
    share = 0.1                     # of the greedy tokens of a lane, at most

    [[deviations]]                  # faults of references that are accepted, until a day
    name = "llama.cpp-silu"
    lanes = "tiny-relu2 *"
    expires = 2027-06-30
    reason = "reported"

    [baseline]                      # receipts of before, beside this file
    files = ["baselines/epyc.json"]
    missing = "pass"                # where none is of this kind of machine: "pass" or "fail"
    speed = 0.8                     # the ratio to the peer must reach this share of the baseline's
    drift = 4.0                     # a measured difference may grow to this multiple
    bits = false                    # whether equal inputs must give equal logits
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from fnmatch import fnmatchcase
from os import PathLike
from pathlib import Path
from typing import Literal

from receipts.errors import SettingError
from receipts.lanes import RUNGS, RungName
from receipts.settings import Table, read_toml

SHIPPED = Path(__file__).resolve().parent / "policies"
VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneDemand:
    """Lanes that must be there and pass.

    Attributes:
        match: Pattern of their names.
        rungs: That must pass; empty for those that the receipt itself requires.
    """

    match: str
    rungs: tuple[RungName, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class AllowedDeviation:
    """A declared fault of a reference that is accepted.

    Attributes:
        name: Of the declaration.
        lanes: Pattern of the lanes it may be in.
        expires: The last day on which it is.
        reason: For people.
    """

    name: str
    lanes: str
    expires: date
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The least that has to be shown; zero or None asks nothing."""

    cases: int = 0
    tokens: int = 0
    live: int = 0
    determinism: int = 0
    accuracy: int = 0
    age_days: float | None = None
    clean: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class BaselineRules:
    """What is compared with receipts of before.

    Attributes:
        files: Theirs.
        missing: What it means that none is of this kind of machine.
        speed: Share of the baseline's ratio to the peer that must be reached; None compares no speed.
        drift: Multiple of the baseline's measured difference that is allowed; None compares none.
        bits: Whether equal inputs must give equal logits.
    """

    files: tuple[Path, ...] = ()
    missing: Literal["pass", "fail"] = "fail"
    speed: float | None = None
    drift: float | None = None
    bits: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A gate's demands."""

    name: str
    lanes: tuple[LaneDemand, ...] = ()
    limits: dict[RungName, float] = field(default_factory=dict)
    evidence: Evidence = field(default_factory=Evidence)
    near_ties: float | None = None
    deviations: tuple[AllowedDeviation, ...] = ()
    baseline: BaselineRules = field(default_factory=BaselineRules)

    def allows(self, deviation: str, lane: str) -> AllowedDeviation | None:
        """The entry that accepts a deviation in a lane; of several the one that lasts longest."""
        fitting = [d for d in self.deviations if d.name == deviation and fnmatchcase(lane, d.lanes)]
        return max(fitting, key=lambda entry: entry.expires, default=None)


def read_policy(name: str | PathLike[str]) -> Policy:
    """A shipped policy by its name, or any by its file. Raises `SettingError`."""
    shipped = {path.stem: path for path in SHIPPED.glob("*.toml")}
    path = shipped.get(str(name), Path(name))
    if path == Path(name) and not path.exists():
        raise SettingError(
            "there is no such policy", file=str(name), remedy=f"a file, or one of {', '.join(sorted(shipped))}"
        )
    root = read_toml(path)
    version = root.count("version", 0)
    if version != VERSION:
        raise root.error(f"{version} is not known here", "version", f"this package reads version {VERSION}")
    near_ties = root.table("near_ties")
    policy = Policy(
        name=root.text("name", path.stem),
        lanes=tuple(_lanes(table) for table in root.tables("lanes")),
        limits=_limits(root.table("limits")),
        evidence=_evidence(root.table("evidence")),
        near_ties=near_ties.number("share"),
        deviations=tuple(_deviation(table) for table in root.tables("deviations")),
        baseline=_baseline(root.table("baseline"), path.parent),
    )
    near_ties.end()
    root.end()
    return policy


def _lanes(table: Table) -> LaneDemand:
    match, rungs = table.text("match", needed=True), table.texts("rungs")
    if unknown := [name for name in rungs if name not in RUNGS]:
        raise table.error(f"{unknown[0]!r} is no rung", "rungs", f"one of {', '.join(RUNGS)}")
    table.end()
    return LaneDemand(match=match, rungs=tuple(name for name in RUNGS if name in rungs))


def _limits(table: Table) -> dict[RungName, float]:
    values = {name: table.number(name) for name in RUNGS}
    table.end()
    return {name: value for name, value in values.items() if value is not None}


def _evidence(table: Table) -> Evidence:
    counts = {name: table.count(name) for name in ("cases", "tokens", "live", "determinism", "accuracy")}
    made = Evidence(**counts, age_days=table.number("age_days"), clean=table.flag("clean"))
    table.end()
    return made


def _deviation(table: Table) -> AllowedDeviation:
    expires = table.day("expires")
    if expires is None:
        raise table.error("is missing", "expires", "a deviation is accepted until a day, never for ever")
    made = AllowedDeviation(
        name=table.text("name", needed=True),
        lanes=table.text("lanes", "*"),
        expires=expires,
        reason=table.text("reason", needed=True),
    )
    table.end()
    return made


def _baseline(table: Table, folder: Path) -> BaselineRules:
    missing = table.text("missing", "fail")
    if missing not in ("pass", "fail"):
        raise table.error(f"{missing!r} is not pass or fail", "missing")
    made = BaselineRules(
        files=tuple(folder / name for name in table.texts("files")),
        missing=missing,  # type: ignore[arg-type]  # one of the two
        speed=table.number("speed"),
        drift=table.number("drift"),
        bits=table.flag("bits"),
    )
    table.end()
    if made.drift is not None and made.drift < 1:
        raise table.error(f"{made.drift:g} would refuse the baseline itself", "drift", "1 or more")
    return made
