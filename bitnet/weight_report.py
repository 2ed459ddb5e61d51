"""What was found in a model file: findings, the numbers of every tensor, and how people and programs see them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar, get_args

from bitnet import html
from bitnet.weight_statistics import MatrixStatistics, NormStatistics

T = TypeVar("T", MatrixStatistics, NormStatistics)
SCHEMA = "urn:bitnet-crossval:model-verify-1"
Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
_SHOWN = 20  # findings of one severity that people are shown


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong or odd.

    Attributes:
        subject: Tensor, key or file it is about.
        what: One sentence.
        remedy: What the user can do; "" for a note that asks for nothing.
    """

    severity: Severity
    subject: str
    what: str
    remedy: str = ""

    def __str__(self) -> str:
        hint = f"\n         hint: {self.remedy}" if self.remedy else ""
        return f"{self.severity:<8} {self.subject}: {self.what}{hint}"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightReport:
    """What was found.

    Attributes:
        file: Its name.
        findings: Errors first, then warnings, then notes.
        matrices: Every matrix that could be read, the embedding and the head among them.
        norms: Every norm.
    """

    file: str
    findings: tuple[Finding, ...]
    matrices: tuple[MatrixStatistics, ...] = ()
    norms: tuple[NormStatistics, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.of("error")

    def of(self, severity: Severity) -> tuple[Finding, ...]:
        """Findings of one severity."""
        return tuple(f for f in self.findings if f.severity == severity)

    @property
    def trits(self) -> dict[str, int]:
        """Weights that are −1, 0 and +1 in all ternary matrices together."""
        kinds = ("negative", "zero", "positive")
        return {k: sum(getattr(m, k) for m in self.matrices if m.scale is not None) for k in kinds}

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON; they follow schemas/model-verify-1.schema.json."""
        return {
            "schema": SCHEMA,
            "file": self.file,
            "ok": self.ok,
            "findings": [asdict(f) for f in self.findings],
            "trits": self.trits,
            "matrices": [m.to_dict() | {"shape": list(m.shape)} for m in self.matrices],
            "norms": [n.to_dict() for n in self.norms],
        }

    @property
    def verdict(self) -> str:
        """One line."""
        counts = ", ".join(f"{len(self.of(s))} {s}(s)" for s in SEVERITIES)
        return f"{self.file}: {'sound' if self.ok else 'not usable'} ({counts})"

    def __str__(self) -> str:
        shown, hidden = self._shown()
        lines = [*map(str, shown), *hidden]
        for header, rows in ((_MATRIX, _matrix_rows(self.matrices)), (_NORM, _norm_rows(self.norms))):
            lines += _aligned([header, *rows]) if rows else []
        return "\n".join([*lines, *self._total(), self.verdict])

    def _repr_html_(self) -> str:
        shown, hidden = self._shown()
        parts = [html.text(self.verdict, "\n".join([*self._total(), *hidden]))]
        found = [(f.severity, f.subject, f.what, f.remedy) for f in shown]
        parts += [html.grid("findings", ("severity", "subject", "what", "remedy"), found)] if found else []
        parts += [html.grid("matrices", _MATRIX, _matrix_rows(self.matrices))] if self.matrices else []
        parts += [html.grid("norms", _NORM, _norm_rows(self.norms))] if self.norms else []
        return "".join(parts)

    def _shown(self) -> tuple[list[Finding], list[str]]:
        """Some findings of each severity, and a line for the rest."""
        shown = [f for severity in SEVERITIES for f in self.of(severity)[:_SHOWN]]
        rest = len(self.findings) - len(shown)
        return shown, [f"… and {rest} more of the same severities"] if rest else []

    def _total(self) -> list[str]:
        """All ternary matrices in a line, if there are any."""
        trits = self.trits
        if not (n := sum(trits.values())):
            return []
        shares = ", ".join(f"{v / n:.1%} {name}" for v, name in zip(trits.values(), ("−1", "0", "+1"), strict=True))
        return [f"{sum(m.scale is not None for m in self.matrices)} ternary matrices, {n} weights: {shares}"]


_MATRIX = ("matrix", "count", "type", "−1", "0", "+1", "scale", "mean|w|")
_NORM = ("norm", "count", "least", "greatest", "rms")


def _matrix_rows(matrices: Iterable[MatrixStatistics]) -> list[tuple[str, ...]]:
    """One row for the same matrix of all layers, in the order of the first."""
    rows = []
    for role, same in _by_role(matrices).items():
        trits = [m for m in same if m.scale is not None]
        n = sum(m.n for m in trits)
        counts = (sum(getattr(m, k) for m in trits) for k in ("negative", "zero", "positive"))
        shares = tuple(f"{count / n:.1%}" if n else "" for count in counts)
        scales = _span([m.scale for m in trits if m.scale is not None])
        types = ", ".join(sorted({m.type for m in same}))
        rows.append((role, str(len(same)), types, *shares, scales, _span([m.mean_abs for m in same])))
    return rows


def _norm_rows(norms: Iterable[NormStatistics]) -> list[tuple[str, ...]]:
    """Likewise."""
    rows: list[tuple[str, ...]] = []
    for role, same in _by_role(norms).items():
        least, greatest = min(n.min for n in same), max(n.max for n in same)
        rows.append((role, str(len(same)), f"{least:.3g}", f"{greatest:.3g}", _span([n.rms for n in same])))
    return rows


def _by_role(tensors: Iterable[T]) -> dict[str, list[T]]:
    """`ffn_up` for `blk.7.ffn_up.weight`."""
    roles: dict[str, list[T]] = defaultdict(list)
    for tensor in tensors:
        roles[role_of(tensor.name)].append(tensor)
    return roles


def role_of(name: str) -> str:
    """What a tensor is in its layer: `ffn_up` for `blk.7.ffn_up.weight`."""
    return (name.split(".", 2)[-1] if name.startswith("blk.") else name).removesuffix(".weight")


def _span(values: Sequence[float]) -> str:
    """The least and the greatest, or the one there is."""
    if not values:
        return ""
    least, greatest = f"{min(values):.3g}", f"{max(values):.3g}"
    return least if least == greatest else f"{least} to {greatest}"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as their widest."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(v.ljust(w) for v, w in zip(row, widths, strict=True)).rstrip() for row in rows]
