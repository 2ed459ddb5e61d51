"""Whether a model file is what it should be: everything that loading refuses, all of it at once, and what looks odd.

Loading stops at the first fault, for it must not go on. Here each fault becomes a finding, and the weights that can
be read are counted: how many trits are −1, 0 and +1, how the scale compares with mean|w|, how large the norms are. An
error means that the model cannot run, or not as it was trained; a warning that somebody should look; a note explains.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from statistics import median

import numpy as np

from bitnet.architecture import read_config
from bitnet.config import ModelConfig
from bitnet.errors import BitNetError, GGUFError, ModelFileError
from bitnet.formats import Formats, read_formats
from bitnet.gguf import GGUF, StringArray
from bitnet.hf import open_model
from bitnet.linear import Float32, Matrix
from bitnet.weight_report import SEVERITIES, Finding, WeightReport, role_of
from bitnet.weight_statistics import (
    MatrixStatistics,
    NormStatistics,
    constant_fault,
    is_ternary,
    matrix_statistics,
    norm_statistics,
)
from bitnet.weights import ROPE_FREQS, TensorReader

__all__ = ["Finding", "WeightReport", "validate_weights", "verify"]

#: Share of zeros, which is 1 − mean|w| / scale. absmean of a bell-shaped master matrix leaves 31 %; sparser ones are
#: trained too. Hardly any is what max|w| as scale gives, or a wrong table of codes; hardly anything else is damage.
ZEROS = (0.02, 0.95)
#: |#+1 − #−1| / (#+1 + #−1). The trained models of the fixtures stay below 0.04; a wrong table of codes comes near 1.
#: Of fewer weights than this, chance alone moves it.
BALANCE, BALANCE_FROM = 0.5, 4096
#: mean|w| this many times above or below the median of the same matrix in the other layers: 1.7 in the fixtures, and a
#: scale that is inverted or of another byte order is farther off.
SCALE_SPREAD = 100.0
#: √mean(γ²). Legitimate sub-norms go down to 0.018; beyond these limits the bytes were no float32, or not these.
NORM_RMS = (1e-4, 1e4)

_CONVERT = "convert it again from the original checkpoint, with a current converter"
_LAYOUT = "check the packing of the converter: a permutation or another table of codes looks like this"


def verify(path: str | PathLike[str]) -> WeightReport:
    """Examine a GGUF file or a checkpoint in every stage of loading, without raising for what is wrong with it.

    The tokenizer and the chat template are examined too; a model without a template is none the worse.

    Raises:
        ResourceLimitError: A limit was hit before anything could be examined.
    """
    findings: list[Finding] = []
    try:
        gguf = open_model(path)
        findings += [_note(gguf, notice) for notice in gguf.notices]
        findings += _text_findings(gguf)
        config, notices = read_config(gguf)
    except ModelFileError as error:
        return WeightReport(file=Path(path).name, findings=_sorted([*findings, _refusal(error, Path(path).name)]))
    findings += [_note(gguf, notice) for notice in notices]
    findings += _vocabulary_findings(gguf, config)
    report = validate_weights(gguf, config)
    return WeightReport(
        file=report.file,
        findings=_sorted([*findings, *report.findings]),
        matrices=report.matrices,
        norms=report.norms,
    )


def validate_weights(gguf: GGUF, config: ModelConfig, formats: Formats | None = None) -> WeightReport:
    """Examine every tensor that the architecture asks for, and name those it does not.

    Args:
        gguf: The open file.
        config: Its hyper-parameters.
        formats: How its tensors are read; default what `read_formats` finds out.
    """
    survey = _Survey(gguf, formats or read_formats(gguf))
    survey.all(config)
    findings = [*survey.findings, *(_note(gguf, notice) for notice in survey.notices)]
    findings += [
        Finding(
            severity="error",
            subject=name,
            what=f"no operation of {config.arch} uses this tensor",
            remedy="the architecture name may be wrong, or the file belongs to another engine",
        )
        for name in sorted(set(gguf.tensors) - survey.consumed)
    ]
    for m in survey.matrices:
        findings += _matrix_findings(m, ternary=m.name.startswith("blk."), mixed=survey.some_ternary)
    findings += _scale_findings(survey.matrices)
    for norm in survey.norms:
        findings += _norm_findings(norm)
    return WeightReport(
        file=gguf.path.name,
        findings=_sorted(findings),
        matrices=tuple(survey.matrices),
        norms=tuple(survey.norms),
    )


class _Survey(TensorReader):
    """Reads as loading does, but counts what it reads, keeps none of it, and goes on after a fault."""

    def __init__(self, gguf: GGUF, formats: Formats) -> None:
        super().__init__(gguf, formats)
        self.findings: list[Finding] = []
        self.matrices: list[MatrixStatistics] = []
        self.norms: list[NormStatistics] = []
        self.some_ternary = False  # of the projections

    def all(self, c: ModelConfig) -> None:
        """Everything that `read_weights` asks for."""
        self.matrix("token_embd", c.n_vocab, c.n_embd)
        for il in range(c.n_layer):
            self.layer(il, c)
        self.vector("output_norm.weight", c.n_embd)
        if not c.tied_head:
            self.matrix("output", c.n_vocab, c.n_embd)
        if ROPE_FREQS in self.gguf.tensors:
            self.vector(ROPE_FREQS, c.head_dim // 2)

    def vector(self, name: str, n: int) -> Float32:
        """A vector; ones where it cannot be read."""
        try:
            values = super().vector(name, n)
        except BitNetError as error:
            self._fault(error, name)
            return np.ones(n if name.endswith(".scale") else 0, np.float32)
        if not name.endswith(".scale") and name != ROPE_FREQS:
            self.norms.append(norm_statistics(name, values))
        return values

    def matrix(self, base: str, n_row: int, n_col: int) -> Matrix:
        """A matrix; an empty one, since only its numbers are wanted."""
        name = f"{base}.weight"
        try:
            matrix = super().matrix(base, n_row, n_col)
        except BitNetError as error:
            self._fault(error, name)
        else:
            self.matrices.append(matrix_statistics(matrix))
            self.some_ternary = self.some_ternary or (name.startswith("blk.") and is_ternary(matrix))
            fault = constant_fault(matrix)
            if fault is not None:
                self.findings.append(Finding(severity="error", subject=name, what=f"is {fault}", remedy=_CONVERT))
        return Matrix(name=name, type_name="", n_row=n_row, n_col=n_col, n_bytes=0, scale=np.float32(1))

    def _fault(self, error: BitNetError, name: str) -> None:
        self.consumed.add(name)  # it is asked for, whatever is wrong with it
        self.findings.append(_error(error, name))


def _error(error: BitNetError, subject: str) -> Finding:
    return Finding(severity="error", subject=subject, what=error.what, remedy=error.remedy or _CONVERT)


def _refusal(error: BitNetError, file: str) -> Finding:
    """What ended reading, under the key, tensor or header field that it is about."""
    if not isinstance(error, GGUFError):
        return _error(error, file)
    place = [] if error.offset is None else [f"at byte {error.offset}"]
    place += [] if Path(error.path).name == file else [f"of {Path(error.path).name}"]  # another shard
    what = f"{error.what} ({' '.join(place)})" if place else error.what
    return Finding(severity="error", subject=error.field or file, what=what, remedy=error.remedy or _CONVERT)


def _note(gguf: GGUF, what: str) -> Finding:
    return Finding(severity="note", subject=gguf.path.name, what=what)


def _warning(subject: str, what: str, remedy: str) -> Finding:
    return Finding(severity="warning", subject=subject, what=what, remedy=remedy)


def _sorted(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity)))


def _matrix_findings(m: MatrixStatistics, *, ternary: bool, mixed: bool) -> list[Finding]:
    """One matrix for itself; `ternary` where the architecture means it to be, `mixed` where any is."""
    if not m.finite:
        return [Finding(severity="error", subject=m.name, what="holds NaN or infinity", remedy=_CONVERT)]
    if m.max_abs == 0 or not ternary:
        return []
    if m.scale is None or m.negative is None or m.zero is None or m.positive is None:
        how = "with activations in int8, as the ternary ones" if mixed else "with activations as they are"
        what = f"is not ternary (mean|w| {m.mean_abs:.4g}, max|w| {m.max_abs:.4g}); it is multiplied as floats, {how}"
        return [Finding(severity="note", subject=m.name, what=what)]
    found, zeros, others = [], m.zero / m.n, m.negative + m.positive
    if not ZEROS[0] <= zeros <= ZEROS[1]:
        what = f"{zeros:.1%} of its weights are 0; in a trained model {ZEROS[0]:.0%} to {ZEROS[1]:.0%} are"
        found.append(_warning(m.name, what, _LAYOUT))
    if others >= BALANCE_FROM and abs(m.positive - m.negative) > BALANCE * others:
        what = f"it has {m.negative} weights of −1 and {m.positive} of +1; a trained model has about as many of both"
        found.append(_warning(m.name, what, _LAYOUT))
    if m.scale < 0:
        found.append(_warning(m.name, f"its scale {m.scale:.4g} is negative; no quantiser makes that", _CONVERT))
    return found


def _scale_findings(matrices: Sequence[MatrixStatistics]) -> list[Finding]:
    """Scales against each other: the same matrix of other layers, and all of them together."""
    ternary = [m for m in matrices if m.scale and m.name.startswith("blk.")]
    if len(ternary) > 1 and all(m.scale == 1 for m in ternary):
        what = f"the scale of all {len(ternary)} ternary matrices is 1, so mean|w| says nothing of the trained weights"
        return [_warning("scales", what, "they may have been dropped in conversion; compare with the checkpoint")]
    by_role: dict[str, list[MatrixStatistics]] = defaultdict(list)
    for m in ternary:
        by_role[role_of(m.name)].append(m)
    found = []
    for role, same in by_role.items():
        usual = median(m.mean_abs for m in same)
        for m in same:
            if m.scale and usual and not 1 / SCALE_SPREAD <= m.mean_abs / usual <= SCALE_SPREAD:
                what = f"mean|w| is {m.mean_abs:.3g} (scale {m.scale:.3g}); the median of {role} is {usual:.3g}"
                found.append(
                    _warning(m.name, what, "its scale may be inverted or damaged; compare with the checkpoint")
                )
    return found


def _norm_findings(norm: NormStatistics) -> list[Finding]:
    if norm.rms == 0:
        return [Finding(severity="error", subject=norm.name, what="is all zero, so nothing passes", remedy=_CONVERT)]
    if not NORM_RMS[0] <= norm.rms <= NORM_RMS[1]:
        what = f"its rms is {norm.rms:.3g}; norms of trained models lie well within {NORM_RMS[0]:g} to {NORM_RMS[1]:g}"
        return [_warning(norm.name, what, "its type or byte order may have been mistaken; compare with the checkpoint")]
    return []


def _text_findings(gguf: GGUF) -> list[Finding]:
    """The tokenizer and the chat template."""
    from bitnet.chat import check_template, template_of
    from bitnet.discovery import discover

    found = []
    try:
        search = discover(gguf, offline=True)
    except BitNetError as error:
        found.append(_error(error, "tokenizer"))
    else:
        found += [Finding(severity="note", subject="tokenizer", what=notice) for notice in search.notices]
    if "tokenizer.chat_template" in gguf.metadata:
        try:
            template = template_of(gguf)
            check_template(template.text)
        except BitNetError as error:
            found.append(_error(error, "tokenizer.chat_template"))
        else:
            if template.source != "declared":
                found.append(Finding(severity="note", subject="tokenizer.chat_template", what=template.source))
    return found


def _vocabulary_findings(gguf: GGUF, config: ModelConfig) -> list[Finding]:
    """The embedding against the vocabulary and what the file says of it."""
    found = []
    tokens = gguf.metadata.get("tokenizer.ggml.tokens")
    sizes = {"tokenizer.ggml.tokens": len(tokens) if isinstance(tokens, StringArray) else 0}
    sizes[f"{config.arch}.vocab_size"] = gguf.metadata.get(f"{config.arch}.vocab_size", 0)
    for key, size in sizes.items():
        if size > config.n_vocab:
            what = f"says {size} tokens, but the embedding has {config.n_vocab} rows"
            found.append(Finding(severity="error", subject=key, what=what, remedy="the tokenizer is of another model"))
        elif 0 < size < config.n_vocab:
            what = f"says {size} tokens, but the embedding has {config.n_vocab} rows; the rest are never made into text"
            found.append(Finding(severity="note", subject=key, what=what))
    return found
