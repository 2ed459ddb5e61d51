"""`bitnet validate`: two engines on one model, and what is wrong where they disagree.

Importing this module imports the parser alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitnet.cli.groups import examples, group
from bitnet.cli.options import Format, Output, Quiet
from bitnet.errors import UsageError
from crossval import commands, infer_cli
from crossval.commands import BITNET_CPP, COPIES, HF, MODELS, ONLY, RECORDINGS, THREADS, WORK
from crossval.validate_lanes import ASIDE, NOTHING, WRONG, asked, climbed, code_of, typed

if TYPE_CHECKING:
    from crossval.decoded import TensorComparison
    from crossval.lane import Lane
    from receipts import record as r

_TINY = "fixtures/models/tiny-relu2.i2_s.gguf"
_ORACLE = f"--model {_TINY} --only oracle"
REPRO = Annotated[Path, typer.Option(help="Folder for the smallest case; one below it for each lane.")]
ONE = Annotated[str, typer.Option(help="The lane: its name, or a part that no other has.")]


app = group(
    "Compare engines on the same weights, find the first wrong operation, and name its cause.",
    examples(f"bitnet validate crossval {_ORACLE} --receipt build/receipt.json --no-measure"),
)


def _command(name: str, *lines: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return lambda function: app.command(name, epilog=examples(*lines))(typed(function))


_command("crossval", f"bitnet validate crossval {_ORACLE} --receipt build/receipt.json --no-measure")(commands.run)
_command("record", f"bitnet validate record build/tiny.recording --model {_TINY} --only oracle --no-hf")(
    commands.record
)
_command(
    "infer",
    "bitnet validate infer fixtures/goldens/b158_a.p1.npz --model fixtures/goldens/b158_a.gguf --numerics kv=f16 "
    "--numerics query=f16 --numerics probs=f16_decode --numerics head=f16_decode --numerics rope=f32_iterated",
)(infer_cli.infer)
_command(
    "drift",
    "bitnet validate drift --sample 4 --out build/drift.json --work build/drift",
    "bitnet validate drift --evidence logits --sample 2 --out build/drift.json --work build/drift",
)(commands.drift)


@_command(
    "locate",
    f"bitnet validate locate {_ORACLE}",
    f'bitnet validate locate --model {_TINY} --only "llama.cpp TQ2_0"',
)
def locate(
    model: MODELS = None,
    only: ONLY = "",
    work: WORK = COPIES,
    threads: THREADS = None,
    hf: HF = None,
    bitnet_cpp: BITNET_CPP = None,
    recording: RECORDINGS = None,
    quiet: Quiet = False,
    output: Output = Format.human,
) -> None:
    """Find the first wrong operation of each lane: positions, rows, heads, the worst element.

    Exit codes: 0 none is wrong; 1 one is; 4 nothing could be compared.
    """
    from bitnet.cli.output import facts
    from crossval.answer import finding_dict, lane_fields, located, stopped_at, where
    from receipts.visible import visible

    options = commands.options_of(
        model, only, work, threads=threads, hf=hf, bitnet_cpp=bitnet_cpp, recording=recording, **ASIDE, explain=False
    )
    found: dict[str, Any] = {}

    def watch(lane: Lane, record: r.Lane) -> None:
        found[record.name] = located(lane, record)

    records = climbed(options, watch, quiet=quiet)
    if output is Format.json:
        lanes = []
        for record in records:
            one = found.get(record.name)
            integer = None if record.located is None else record.located.to_dict()
            fields = {**lane_fields(record), "located": integer}
            lanes.append({**fields, "operation": None if one is None else finding_dict(one)})
        _print("validate-locate-1", {"lanes": lanes})
    else:
        for record in records:
            stop, one = stopped_at(record), found.get(record.name)
            print(visible(f"{record.name}: {commands.mark(record)}" + (f", {stop.name}: {stop.why}" if stop else "")))
            if one is not None:
                rows = [
                    ("  operation", where(one.key)),
                    ("  positions", _listed(one.positions)),
                    ("  rows", _listed(one.rows)),
                    *([("  heads", _listed(one.heads))] if one.heads else []),
                    (
                        "  worst",
                        f"token {one.worst[0]}, column {one.worst[1]}: {one.expected:.6g}, found {one.found:.6g}",
                    ),
                    ("  error", f"{one.ratio:.2e} of the largest value; {one.words}"),
                ]
                facts(rows)
    raise typer.Exit(code_of(records))


@_command(
    "explain",
    f"bitnet validate explain {_ORACLE}",
    f'bitnet validate explain --model {_TINY} --only "llama.cpp TQ2_0"',
)
def explain(
    model: MODELS = None,
    only: ONLY = "",
    work: WORK = COPIES,
    repro: REPRO = Path("build/repro"),
    threads: THREADS = None,
    hf: HF = None,
    bitnet_cpp: BITNET_CPP = None,
    recording: RECORDINGS = None,
    quiet: Quiet = False,
    output: Output = Format.human,
) -> None:
    """Say of each lane what is wrong, what it computes instead, who agrees, and where the smallest case lies.

    Exit codes: 0 nothing is wrong; 1 something is; 4 nothing could be compared.
    """
    from crossval.answer import Repro, declared, lane_fields, sentence, shrunk
    from receipts.visible import visible

    options = commands.options_of(
        model, only, work, threads=threads, hf=hf, bitnet_cpp=bitnet_cpp, recording=recording, **ASIDE
    )
    cases: dict[str, Repro | None] = {}
    told: dict[str, dict[str, Any]] = {}

    def watch(lane: Lane, record: r.Lane) -> None:
        cases[record.name] = shrunk(lane, record, repro / _folder(record.name))
        n_token = len(lane.locked.ids) if lane.locked is not None else 0
        told[record.name] = {"n_token": n_token, "file_says": declared(lane, record)}

    records = climbed(options, watch, quiet=quiet)
    lanes = []
    for record in records:
        case, facts = cases.get(record.name), told.get(record.name, {})
        said = sentence(record, **facts, repro="" if case is None else f"{case.folder}/")
        if output is Format.human:
            print(visible(said))
        fields = {**lane_fields(record), "sentence": said, "declared": facts.get("file_says", "")}
        lanes.append({**fields, "repro": None if case is None else str(case.script)})
    if output is Format.json:
        _print("validate-explain-1", {"lanes": lanes})
    raise typer.Exit(code_of(records))


@_command("minimise", f'bitnet validate minimise --model {_TINY} --only "llama.cpp TQ2_0" --repro build/repro')
def minimise(
    only: ONE,
    model: MODELS = None,
    work: WORK = COPIES,
    repro: REPRO = Path("build/repro"),
    threads: THREADS = None,
    hf: HF = None,
    bitnet_cpp: BITNET_CPP = None,
    quiet: Quiet = False,
    output: Output = Format.human,
) -> None:
    """Shrink a lane's fault to the fewest tokens that show it, and write a numpy script that runs alone.

    Exit codes: 0 nothing is wrong; 1 a case was written; 4 nothing could be compared.
    """
    from crossval.answer import Repro, shrunk, where
    from receipts.visible import visible

    options = commands.options_of(
        model, only, work, threads=threads, hf=hf, bitnet_cpp=bitnet_cpp, **ASIDE, explain=False
    )
    cases: list[Repro] = []

    def watch(lane: Lane, record: r.Lane) -> None:
        case = shrunk(lane, record, repro / _folder(record.name))
        cases.extend([] if case is None else [case])

    [record] = climbed(options, watch, quiet=quiet, one=True)
    case = cases[0] if cases else None
    if output is Format.json:
        small = None
        if case is not None:
            small = {
                "tap": case.key[0],
                "layer": case.key[1],
                "ids": list(case.ids),
                "n_before": case.n_before,
                "n_batch": case.n_batch,
                "tried": case.tried,
                "script": str(case.script),
            }
        _print("validate-minimise-1", {"lane": record.name, "outcome": record.outcome, "case": small})
    elif case is None:
        print(f"{visible(record.name)}: {commands.mark(record)}; no float operation is wrong")
    else:
        left = f"{len(case.ids)} of {case.n_before} tokens: {list(case.ids)}"
        print(f"{visible(record.name)}: {where(case.key)} is wrong on {left}")
        print(f"{case.tried} cases were tried; the smallest: {case.script}")
    raise typer.Exit(code_of([record]))


@_command("tokens", f'bitnet validate tokens --model {_TINY} --only "llama.cpp TQ2_0" --text "One day Anna"')
def tokens(
    only: ONE,
    model: MODELS = None,
    text: Annotated[list[str] | None, typer.Option(help="May be repeated. Default: prompts and nasty texts.")] = None,
    work: WORK = COPIES,
    hf: HF = None,
    bitnet_cpp: BITNET_CPP = None,
    recording: RECORDINGS = None,
    quiet: Quiet = False,
    output: Output = Format.human,
) -> None:
    """Compare the token ids of texts with a reference's, and show the spans that differ.

    Exit codes: 0 equal; 1 different; 4 the reference has no tokenizer.
    """
    from crossval.spans import differences

    def compare(lane: Lane) -> tuple[int, list[dict[str, Any]]]:
        found, texts = [], tuple(text or lane.texts)
        for one in texts:
            ours, theirs = lane.original.tokenize(one), lane.reference.tokenize(one)
            spans = differences(lane.original.model.tokenizer, ours, theirs)
            if spans:
                found.append({"text": one, "spans": [span.to_dict() for span in spans]})
        return len(texts), found

    options = commands.options_of(model, only, work, hf=hf, bitnet_cpp=bitnet_cpp, recording=recording, **ASIDE)
    name, (n, different) = asked(options, compare, quiet=quiet)
    if output is Format.json:
        _print("validate-tokens-1", {"lane": name, "texts": n, "different": different})
    else:
        for one in different:
            print(repr(one["text"]))
            for span in one["spans"]:
                at = f"byte {span['byte']}, token {span['token']}"
                print(f"  {at}, {span['text']!r}: {span['ours']} here, {span['theirs']} there")
        print(f"{name}: {n - len(different)} of {n} texts have the same ids")
    raise typer.Exit(NOTHING if not n else WRONG if different else 0)


@_command("weights", f'bitnet validate weights --model {_TINY} --only "llama.cpp TQ2_0"')
def weights(
    only: ONE,
    model: MODELS = None,
    show_all: Annotated[bool, typer.Option("--all", help="List the tensors that are equal, too.")] = False,
    work: WORK = COPIES,
    hf: HF = None,
    bitnet_cpp: BITNET_CPP = None,
    recording: RECORDINGS = None,
    quiet: Quiet = False,
    output: Output = Format.human,
) -> None:
    """Compare every tensor as both sides decode it: values, scale, histogram, digest.

    Exit codes: 0 equal to the bit; 1 different; 4 the reference shows no weights.
    """
    from crossval.decoded import compared, decoded_tensors

    def compare(lane: Lane) -> list[TensorComparison]:
        return [compared(tensor) for tensor in decoded_tensors(lane.original, lane.reference)]

    options = commands.options_of(model, only, work, hf=hf, bitnet_cpp=bitnet_cpp, recording=recording, **ASIDE)
    name, found = asked(options, compare, quiet=quiet)
    different = [tensor for tensor in found if tensor.n_differ]
    if output is Format.json:
        equal = bool(found) and not different
        _print("validate-weights-1", {"lane": name, "equal": equal, "tensors": [t.to_dict() for t in found]})
    else:
        _show_weights(found if show_all else different)
        print(f"{name}: {len(found) - len(different)} of {len(found)} tensors decode to equal bits")
    raise typer.Exit(NOTHING if not found else WRONG if different else 0)


@_command("noise", f"bitnet validate noise --model {_TINY}")
def noise(
    model: MODELS = None,
    quiet: Quiet = False,
    output: Output = Format.human,
) -> None:
    """Measure how far a model is from itself when what float32 leaves open is moved by one unit in the last place.

    Exit codes: 0 measured; 3 bad model file.
    """
    from bitnet.cli.output import facts, progress
    from crossval import envelope
    from crossval.case import PROMPTS, text_cases
    from crossval.closeness import Closeness
    from crossval.engine import EngineRunner
    from crossval.noise import HOW, SEEDS, Noise
    from receipts.running import WINDOW
    from reference.oracle import Oracle

    named = commands.models_of(model)
    if len(named) != 1:
        raise UsageError(f"{len(named)} models are named", where="--model", remedy="name one, or set BITNET_GGUF")
    engine = EngineRunner(named[0])
    numerics = engine.model.network.numerics
    oracle = Oracle(str(named[0]), numerics=numerics.to_dict())
    cases = text_cases(engine, PROMPTS, n_vocab=engine.model.config.n_vocab, n_greedy=0)
    found = Noise()
    with progress(quiet=quiet) as bar:
        for case in bar.track(cases, description="noise"):
            found.measure(oracle, case.ids[: engine.model.config.n_ctx])
    noise = {"median": found.median, "running": found.running, "largest": found.largest}
    close = Closeness.over(numerics.activation, numerics.head, **noise)
    limits = {
        "median": close.median,
        "running": close.running,
        "largest": close.largest,
        "quality": envelope.quality(found.mean_nll),
    }
    if output is Format.json:
        shown = {name: {"limit": one.limit, "reason": one.reason} for name, one in limits.items()}
        fields = {**noise, "margin": found.margin, "nll": found.mean_nll}
        about = {"model": str(named[0]), "numerics": numerics.to_dict(), "how": HOW, "seeds": len(SEEDS)}
        _print("validate-noise-1", {**about, "cases": len(cases), **fields, "limits": shown})
    else:
        print(f"{named[0].name}: {HOW}, {len(cases)} prompts")
        rows = [
            ("median", f"{found.median:.2e}  relative L2 of logits; limit {limits['median'].limit:.2e}"),
            ("running", f"{found.running:.2e}  median of {WINDOW} in a row; limit {limits['running'].limit:.2e}"),
            ("largest", f"{found.largest:.2e}  at any position; limit {limits['largest'].limit:.2e}"),
            ("margin", f"{found.margin:.2e}  below it, two tokens are a near-tie"),
            ("quality", f"{found.mean_nll:.2e}  nats of mean log-likelihood; limit {limits['quality'].limit:.2e}"),
        ]
        facts(rows)


def _print(schema: str, fields: dict[str, Any]) -> None:
    from bitnet.cli.output import document

    print(document(schema, fields))


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:12])) + (f" … ({len(numbers)})" if len(numbers) > 12 else "")


def _folder(lane: str) -> str:
    """A lane's name as a folder's."""
    words = "".join(c if c.isalnum() or c in "-_." else " " for c in lane).split()
    return "-".join(words)


def _show_weights(tensors: Sequence[TensorComparison]) -> None:
    from bitnet.cli.output import table

    rows = [
        (
            t.name,
            f"{t.rows}×{t.columns}",
            str(t.n_differ),
            "–" if t.max_abs is None else f"{t.max_abs:.3g}",
            f"{t.ours.scale:.6g}",
            f"{t.theirs.scale:.6g}",
            t.ours.sha256[:12],
            t.theirs.sha256[:12],
        )
        for t in tensors
    ]
    if rows:
        heads = ("tensor", "shape", "differ", "max |a−b|", "scale here", "there", "digest here", "there")
        table(heads, rows, right=(2, 3, 4, 5))
