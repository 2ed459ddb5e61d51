"""The figures of a drift study: rates with Wilson intervals against what is promised, as JSON and as a table."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from math import sqrt
from pathlib import Path
from typing import Any, Literal, get_args

import jsonschema
from rich.table import Table

import bitnet
from crossval.catalogue import CATALOGUE
from crossval.drift import Trial

SCHEMA = "urn:bitnet-crossval:drift-1"
#: What the engines of a study show.
Evidence = Literal["operations", "logits", "ids"]
EVIDENCE: tuple[Evidence, ...] = get_args(Evidence)
#: What is asked of logits alone, and of greedy ids alone, which show less: a defect smaller than the model's own noise
#: cannot be told from an honest engine, one of two may hide in the other's, and many defects choose the same tokens.
LOGITS = {"detected": 0.80, "single": 0.85, "told": 0.90, "pair": 0.50, "claimed": 0.05}
IDS = {"detected": 0.50, "among": 0.80, "few": 0.50}
_FEW = 5
#: Two-sided 95 %.
_Z = 1.959963984540054


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A share of trials.

    Attributes:
        what: Of what.
        n, k: Trials, and those among them that count.
        low, high: Wilson interval, 95 %.
        target: What is promised.
        at_most: Whether the target is an upper bound.
    """

    what: str
    n: int
    k: int
    target: float
    at_most: bool = False

    @property
    def rate(self) -> float:
        """The share; 0 of nothing."""
        return self.k / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's, 95 %."""
        return wilson(self.k, self.n)

    @property
    def met(self) -> bool:
        """Whether the rate is as promised; of nothing, it is not."""
        if not self.n:
            return False
        return self.rate <= self.target if self.at_most else self.rate >= self.target

    def to_dict(self) -> dict[str, Any]:
        """As the schema has it."""
        low, high = self.interval
        plain = {k: v for k, v in asdict(self).items() if k != "at_most"}
        return {**plain, "rate": self.rate, "low": low, "high": high, "met": self.met}


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson score interval of k successes in n trials, 95 %; (0, 1) of no trials."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = k / n, _Z * _Z
    middle, width = p + z2 / (2 * n), _Z * sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low, high = (middle - width) / (1 + z2 / n), (middle + width) / (1 + z2 / n)
    return max(0.0, min(low, p)), min(1.0, max(high, p))  # p is inside, whatever the last bit says


def rates(trials: Sequence[Trial], evidence: Evidence = "operations") -> list[Rate]:
    """Every promised figure that the trials can speak of, by what the engines showed."""
    counted = [t for t in trials if not t.hidden]
    wrong = [t for t in counted if t.kind != "clean"]
    clean = [t for t in counted if t.kind == "clean"]
    alarms = Rate(what="false alarms", n=len(clean), k=sum(t.detected for t in clean), target=0.01, at_most=True)
    found = {"operations": _of_operations, "logits": _of_logits, "ids": _of_ids}[evidence](wrong)
    return [rate for rate in (*found, alarms) if rate.n]


def _of_operations(wrong: Sequence[Trial]) -> list[Rate]:
    single, pair = (_of_kind(wrong, kind) for kind in ("single", "pair"))
    return [
        _share("detected", wrong, lambda t: t.detected, 0.995),
        _share("located exactly", wrong, lambda t: t.located, 0.98),
        _share("cause first, one defect", single, lambda t: t.attributed, 0.92),
        _share("both causes first, two defects", pair, lambda t: t.attributed, 0.80),
    ]


def _of_logits(wrong: Sequence[Trial]) -> list[Rate]:
    """Of what is detected, for the rest has no difference that could be explained."""
    seen = [t for t in wrong if t.detected]
    single, pair = (_of_kind(seen, kind) for kind in ("single", "pair"))
    other = sum(t.named and not (t.attributed or t.together) for t in seen)
    return [
        _share("detected", wrong, lambda t: t.detected, LOGITS["detected"]),
        _share("cause first, one defect", single, lambda t: t.attributed, LOGITS["single"]),
        _share("cause first or told with it, one defect", single, lambda t: t.attributed or t.together, LOGITS["told"]),
        _share("both causes first, two defects", pair, lambda t: t.attributed, LOGITS["pair"]),
        Rate(what="another cause claimed", n=len(seen), k=other, target=LOGITS["claimed"], at_most=True),
    ]


def _of_ids(wrong: Sequence[Trial]) -> list[Rate]:
    """Nothing is scored: a hypothesis chooses exactly these tokens, or it does not."""
    single = _of_kind([t for t in wrong if t.detected], "single")
    return [
        _share("detected", wrong, lambda t: t.detected, IDS["detected"]),
        _share("cause among those that fit, one defect", single, lambda t: t.together, IDS["among"]),
        _share("at most five fit, one defect", single, lambda t: len(t.causes) <= _FEW, IDS["few"]),
    ]


def _of_kind(trials: Sequence[Trial], kind: str) -> list[Trial]:
    return [t for t in trials if t.kind == kind]


def _share(what: str, of: Sequence[Trial], counts: Callable[[Trial], bool], target: float) -> Rate:
    return Rate(what=what, n=len(of), k=sum(map(counts, of)), target=target)


def report(
    trials: Sequence[Trial], *, first_seed: int, seconds: float, evidence: Evidence = "operations"
) -> dict[str, Any]:
    """The study as JSON, valid under `drift-1.schema.json`."""
    entries = []
    singles = [t for t in trials if t.kind == "single"]
    by_name: dict[str, list[Trial]] = {}
    for t in singles:
        by_name.setdefault(_entry(t.defects[0]), []).append(t)
    for name, of in by_name.items():
        counted = [t for t in of if not t.hidden]
        entries.append(
            {
                "name": name,
                "n": len(counted),
                "detected": sum(t.detected for t in counted),
                "located": sum(t.located for t in counted),
                "attributed": sum(t.attributed for t in counted),
                "set_aside": len(of) - len(counted),
            }
        )
    made = {
        "schema": SCHEMA,
        "evidence": evidence,
        "version": bitnet.__version__,
        "first_seed": first_seed,
        "seconds": seconds,
        "models": sorted({t.model for t in trials}),
        "catalogue": len(CATALOGUE),
        "rates": [rate.to_dict() for rate in rates(trials, evidence)],
        "entries": entries,
        "trials": [t.to_dict() for t in trials],
    }
    check(made)
    return made


def _entry(shown: str) -> str:
    """The catalogue's name of a defect, without its number or tensor."""
    names = {entry.name for entry in CATALOGUE}
    return shown if shown in names else shown.split("=")[0].split(":")[0]


def check(made: dict[str, Any]) -> None:
    """Raise `jsonschema.ValidationError` for a report that the schema does not know."""
    schema = json.loads(files("schemas").joinpath("drift-1.schema.json").read_text("utf-8"))
    jsonschema.validate(made, schema)


def write(made: dict[str, Any], path: Path) -> None:
    """Write a report, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(made, indent=1, allow_nan=False) + "\n", "utf-8")
    os.replace(beside, path)  # noqa: PTH105  # the same as everywhere in this project


def table(trials: Sequence[Trial], evidence: Evidence = "operations") -> Table:
    """The rates for a terminal."""
    why = Counter(t.hidden for t in trials if t.hidden)
    aside = "; ".join(f"{n} {reason}" for reason, n in why.most_common(3)) or "none"
    alone = "" if evidence == "operations" else f" on {evidence} alone"
    shown = Table(title=f"{len(trials) - why.total()} trials{alone}, {why.total()} set aside ({aside})")
    for column in ("", "of", "share", "95 % interval", "promised", ""):
        shown.add_column(column, justify="left" if not column else "right")
    for rate in rates(trials, evidence):
        low, high = rate.interval
        promised = f"{'≤' if rate.at_most else '≥'} {rate.target:.1%}"
        verdict = "ok" if rate.met else "MISSED"
        shown.add_row(rate.what, str(rate.n), f"{rate.rate:.1%}", f"{low:.1%} … {high:.1%}", promised, verdict)
    return shown
