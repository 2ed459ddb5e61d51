"""The ledger against the model, the machine and the cases: could these kernels have computed this?"""

from __future__ import annotations

import re
from collections.abc import Iterator

from receipts.evidence import Ledger
from receipts.rule import Finding, View, key, rule
from receipts.subject import Model
from receipts.summary import is_empty, is_gpu

#: Projections of one layer: q, k, v, o, gate, up, down.
PROJECTIONS = 7
#: No lossless packing of three values needs less than log2(3) = 1.585 bits.
MIN_BITS = 1.585
#: Weights as float32 with a tenth for scales and padding to whole tiles.
MAX_BITS = 32 * 1.1

#: Part of the id of kernels that read floating-point weights as they are, and the bytes of each.
DENSE = ".dense."
_WIDTHS = {"F32": 4, "F16": 2, "BF16": 2}
#: What padding may add to a matrix.
PADDING = 0.05

#: Instruction-set word → CPU flags, one of which must be listed (Linux and LLVM spell some differently).
_FEATURES = {
    "ssse3": ("ssse3",),
    "sse41": ("sse41",),
    "avx": ("avx",),
    "avx2": ("avx2",),
    "avxvnni": ("avxvnni",),
    "avx512": ("avx512f",),
    "avx512bw": ("avx512bw",),
    "avx512vnni": ("avx512vnni",),
    "vnni512": ("avx512vnni",),
    "amx": ("amxint8", "amxtile"),
    "neon": ("asimd", "neon"),
    "dotprod": ("asimddp", "dotprod"),
    "sdot": ("asimddp", "dotprod"),
    "i8mm": ("i8mm",),
    "sve": ("sve",),
}
#: Instruction sets that every CPU of its kind has.
_BASELINE = {"generic", "plain", "scalar", "portable", "numpy", "llvm", "sse2", "x8664", "aarch64", "arm64"}
#: Ternary types alone: an id also names the activation quantiser, as `q8_0`.
_TYPE_NAMES = ("i2_s", "tq1_0", "tq2_0", "tl1", "tl2", "iq2_s")


@rule("ledger.real", "`compute_path` is `real` only if kernels were called for tokens, and none of them is empty.")
def ledger_real(view: View) -> Iterator[Finding]:
    """The predecessors wrote this field as a literal."""
    if view.receipt.compute_path != "real":
        return
    if not view.receipt.ledger:
        yield "ledger", "`compute_path` says `real`, but the ledger is empty"
    for i, part in enumerate(view.receipt.ledger):
        if part.tokens == 0:
            yield f"ledger[{i}].tokens", "no token was computed"
        if not any(e.role == "projection" and e.calls and e.rows for e in part.entries):
            yield f"ledger[{i}].entries", "no projection kernel was called"


@rule("kernels.real", "No kernel is one that computes nothing, by its own name.")
def kernels_real(view: View) -> Iterator[Finding]:
    """In the old list, in the ledger and in the accuracy table."""
    receipt = view.receipt
    named = [(f"kernels[{i}]", name) for i, name in enumerate(receipt.kernels)]
    named += [
        (f"ledger[{i}].entries[{j}].kernel", entry.kernel)
        for i, part in enumerate(receipt.ledger)
        for j, entry in enumerate(part.entries)
    ]
    named += [(f"accuracy[{i}].kernel", row.kernel) for i, row in enumerate(receipt.accuracy)]
    for path, name in named:
        if is_empty(name):
            yield path, f"{name!r} does not compute"


@rule("ledger.models", "Every ledger belongs to a model of the receipt, one for each numerics, with each kernel once.")
def ledger_models(view: View) -> Iterator[Finding]:
    """Also: a model that was measured has a ledger."""
    known, seen = view.models(), set()
    for i, part in enumerate(view.receipt.ledger):
        if part.model not in known:
            yield f"ledger[{i}].model", f"there is no model {part.model!r}"
        if key(part.model, part.numerics) in seen:
            yield f"ledger[{i}]", "a second ledger for the same model and numerics"
        seen.add(key(part.model, part.numerics))
        kernels = [(e.kernel, e.role, e.weight_type, e.isa) for e in part.entries]
        for j, kernel in enumerate(kernels):
            if kernel in kernels[:j]:
                yield f"ledger[{i}].entries[{j}]", f"{kernel[0]!r} is entered twice"


@rule("ledger.calls", "Projection calls = passes × 7 × layers.")
def ledger_calls(view: View) -> Iterator[Finding]:
    """Every ternary product of every layer of every forward call is accounted for."""
    for path, part, model in _parts(view):
        calls = sum(entry.calls for entry in part.entries if entry.role == "projection")
        expected = part.passes * PROJECTIONS * model.hyper_parameters.n_layer
        if calls != expected:
            yield f"{path}.entries", f"{calls} projection calls, but {part.passes} passes make {expected}"


@rule("ledger.rows", "Projection rows = tokens × the rows of the seven projections of all layers.")
def ledger_rows(view: View) -> Iterator[Finding]:
    """A skipped layer, a skipped token, or another model's shape shows here."""
    for path, part, model in _parts(view):
        rows = sum(entry.rows for entry in part.entries if entry.role == "projection")
        expected = part.tokens * model.hyper_parameters.projection_rows
        if rows != expected:
            yield f"{path}.entries", f"{rows} projection rows, but {part.tokens} tokens make {expected}"


@rule("ledger.head", "Head rows = rows of logits × vocabulary; no more rows than tokens, no more calls than rows.")
def ledger_head(view: View) -> Iterator[Finding]:
    """Of the output head."""
    for path, part, model in _parts(view):
        head = [entry for entry in part.entries if entry.role == "head"]
        rows, calls = sum(entry.rows for entry in head), sum(entry.calls for entry in head)
        expected = part.head_rows * model.hyper_parameters.n_vocab
        if rows != expected:
            yield f"{path}.entries", f"{rows} head rows, but {part.head_rows} rows of logits make {expected}"
        if part.head_rows > part.tokens:
            yield f"{path}.head_rows", f"{part.head_rows} rows of logits from {part.tokens} tokens"
        if calls > part.head_rows:
            yield f"{path}.entries", f"{calls} head calls for {part.head_rows} rows of logits"


@rule("ledger.passes", "A forward call evaluates at least one token.")
def ledger_passes(view: View) -> Iterator[Finding]:
    """And tokens come from forward calls."""
    for path, part, _ in _parts(view):
        if part.passes > part.tokens or (part.tokens and not part.passes):
            yield f"{path}.passes", f"{part.passes} passes cannot evaluate {part.tokens} tokens"


@rule("ledger.bytes", "Each pass reads every projection weight, at 1.585 to 35.2 bits each.")
def ledger_bytes(view: View) -> Iterator[Finding]:
    """Fewer bits than log2(3) cannot hold a ternary weight; more than float32 with padding is nothing we read."""
    for path, part, model in _parts(view):
        read = sum(entry.bytes for entry in part.entries if entry.role == "projection")
        weights = part.passes * model.hyper_parameters.projection_weights
        if not MIN_BITS * weights <= 8 * read <= MAX_BITS * weights:
            yield f"{path}.entries", f"{read} bytes read for {weights} weights"


@rule("ledger.dense", "A call of a dense kernel reads each of its weights once, at the width of their type.")
def ledger_dense(view: View) -> Iterator[Finding]:
    """Float types have one width; packed ones are `ledger.packed`'s."""
    for path, part, model in _parts(view):
        shape = model.hyper_parameters
        layers = part.passes * shape.projection_weights
        projections = [entry for entry in part.entries if entry.role == "projection"]
        for j, entry in enumerate(part.entries):
            width = _WIDTHS.get(entry.weight_type)
            if width is None or DENSE not in entry.kernel:
                continue
            weights = entry.calls * shape.n_vocab * shape.n_embd if entry.role == "head" else layers
            if (entry.role == "head" or len(projections) == 1) and entry.bytes != weights * width:
                yield f"{path}.entries[{j}].bytes", f"{entry.bytes}, but {weights} weights of {width} bytes were read"


@rule("ledger.packed", "A kernel reads weights of one type at one width, in every ledger.")
def ledger_packed(view: View) -> Iterator[Finding]:
    """To five hundredths: rows may be padded to whole blocks. And every pass reads the same bytes."""
    first: dict[tuple[str, str], float] = {}
    isas: dict[str, str] = {}
    for path, part, model in _parts(view):
        weights = part.passes * model.hyper_parameters.projection_weights
        entries = [entry for entry in part.entries if entry.role == "projection"]
        for j, entry in enumerate(part.entries):
            if isas.setdefault(entry.kernel, entry.isa) != entry.isa:
                yield f"{path}.entries[{j}].isa", f"{entry.isa!r:.60}, but {isas[entry.kernel]!r:.60} elsewhere"
        if len(entries) != 1 or not weights:
            continue
        [entry] = entries
        width = entry.bytes / weights
        known = first.setdefault((entry.kernel, entry.weight_type), width)
        if abs(width - known) > PADDING * known or entry.bytes % part.passes:
            yield (
                f"{path}.entries",
                f"{entry.kernel!r:.60} read {8 * width:.3f} bits a weight, {8 * known:.3f} elsewhere",
            )


@rule("ledger.weight_type", "A kernel works on a type that the model's file has, and on the one its id names.")
def ledger_weight_type(view: View) -> Iterator[Finding]:
    """`i2_s` kernels do not multiply TQ2_0 weights."""
    for path, part, model in _parts(view):
        types = {name.lower() for name in model.tensor_types}
        for j, entry in enumerate(part.entries):
            if entry.weight_type.lower() not in types:
                yield (
                    f"{path}.entries[{j}].weight_type",
                    f"{entry.weight_type!r} is not among the file's types: {', '.join(sorted(model.tensor_types))}",
                )
            named = [
                name for name in _TYPE_NAMES if re.search(rf"(?<![a-z0-9]){name}(?![a-z0-9])", entry.kernel.lower())
            ]
            if named and entry.weight_type.lower() not in named:
                yield f"{path}.entries[{j}].kernel", f"{entry.kernel!r} on weights of type {entry.weight_type!r}"


@rule("ledger.isa", "A kernel's instruction set is known, and the CPU that ran it has it.")
def ledger_isa(view: View) -> Iterator[Finding]:
    """Both as the entry says and as the kernel's id suggests."""
    if view.receipt.backend != "cpu":
        return
    flags = {_squeeze(flag) for flag in view.receipt.environment.cpu_flags}
    for i, part in enumerate(view.receipt.ledger):
        for j, entry in enumerate(part.entries):
            isa = _squeeze(entry.isa)
            words = {word for word in _FEATURES if word in isa}
            if not words and isa not in _BASELINE and not is_gpu(entry.isa):
                yield f"ledger[{i}].entries[{j}].isa", f"{entry.isa!r} is no instruction set known here"
            words |= {word for word in _FEATURES if len(word) > 3 and word in _squeeze(entry.kernel)}
            for word in sorted(words):
                if not flags.intersection(_FEATURES[word]):
                    yield (
                        f"ledger[{i}].entries[{j}].isa",
                        f"{entry.kernel!r} needs {word}, which this CPU does not list",
                    )


@rule("ledger.backend", "Under `cpu` no kernel is a GPU's, and under `cuda` one is.")
def ledger_backend(view: View) -> Iterator[Finding]:
    """By kernel id and instruction set; the old list of names too."""
    receipt = view.receipt
    gpu = [(f"kernels[{i}]", name) for i, name in enumerate(receipt.kernels) if is_gpu(name)]
    gpu += [
        (f"ledger[{i}].entries[{j}]", entry.kernel)
        for i, part in enumerate(receipt.ledger)
        for j, entry in enumerate(part.entries)
        if is_gpu(entry.kernel) or is_gpu(entry.isa)
    ]
    if receipt.backend != "cuda":
        for path, name in gpu:
            yield path, f"{name!r} runs on a GPU, but the backend is {receipt.backend!r}"
    elif not gpu:
        yield "backend", "`cuda`, but no kernel ran on a GPU"


@rule("ledger.cases", "The ledger counts at least the tokens of the cases it computed.")
def ledger_cases(view: View) -> Iterator[Finding]:
    """The last generated token is never evaluated."""
    needed: dict[object, int] = {}
    ledgers = view.ledgers()
    for i, case in enumerate(view.receipt.cases):
        place = key(case.model, case.numerics)
        if place not in ledgers:
            yield f"cases[{i}]", "no ledger has this model and these numerics"
        needed[place] = needed.get(place, 0) + len(case.prompt_ids) + max(len(case.generated_ids) - 1, 0)
    for i, part in enumerate(view.receipt.ledger):
        tokens = needed.get(key(part.model, part.numerics), 0)
        if part.tokens < tokens:
            yield f"ledger[{i}].tokens", f"{part.tokens}, but the cases alone have {tokens}"


def _parts(view: View) -> Iterator[tuple[str, Ledger, Model]]:
    """Ledgers whose model is known, with their path."""
    known = view.models()
    for i, part in enumerate(view.receipt.ledger):
        if part.model in known:
            yield f"ledger[{i}]", part, known[part.model]


def _squeeze(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
