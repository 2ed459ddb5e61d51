"""A receipt as a run writes it, with every outcome in it: what the tests of the reports look at."""

from __future__ import annotations

import hashlib
import json
import random

import reports_rows

import receipts
from receipts.evidence import (
    Accuracy,
    Case,
    Determinism,
    Ledger,
    LedgerEntry,
    Performance,
    Reference,
    Run,
    SelfCheck,
    TopK,
)
from receipts.lanes import (
    RUNGS,
    Cause,
    KnownDeviation,
    Lane,
    Located,
    NearTie,
    NoiseFloor,
    Rung,
    Vote,
    climb,
    lane_outcome,
)
from receipts.record import Claims
from receipts.subject import Environment, HyperParameters, Identity, Model, TokenizerRecord

TAPS = [
    *("attn_norm", "q", "k", "v", "q_rope", "k_rope", "kqv_out", "attn_sub_norm", "attn_out"),
    *("ffn_inp", "ffn_norm", "ffn_gate", "ffn_up", "ffn_act", "ffn_sub_norm", "ffn_down", "l_out"),
]
MODELS = {"tiny-relu2": ("bitnet-b1.58", "relu2"), "tiny-silu": ("bitnet", "silu"), "tiny-llama": ("llama", "silu")}
METRICS = {
    "identity": ("file sha256", 0.0, 0.0, 1),
    "tokens": ("different ids", 0.0, 0.0, 214),
    "weights": ("different weights", 0.0, 0.0, 28),
    "operations": ("max_abs_err / max_abs_ref", 1.4e-7, 1e-6, 544),
    "logits": ("relative L2, median", 2.2e-7, 1e-6, 96),
    "decode": ("relative L2, median", 1.9e-7, 1e-6, 64),
    "greedy": ("different tokens", 0.0, 0.0, 64),
    "quality": ("difference in nll / token", 3.1e-5, 2e-3, 512),
}
SILU = Cause(
    name="activation=silu",
    explained=0.9993,
    runner_up="rms_eps=1e-6",
    runner_up_explained=0.031,
    explanation="computes SiLU where the file declares relu²",
)
WRONG = Located(
    tap="ffn_act",
    layer=0,
    max_abs_err=0.83,
    max_abs_ref=4.9,
    limit=1e-6,
    positions=(0, 1, 2, 3),
    worst_token=3,
    worst_index=411,
)


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def rung(name, outcome="pass", why="", *, measured=None, ties=0):
    metric, usual, limit, compared = METRICS[name]
    if outcome == "pass":
        why = why or f"{compared} compared, all inside the limit"
        return Rung(
            name=name,
            outcome=outcome,
            why=why,
            metric=metric,
            measured=usual if measured is None else measured,
            limit=limit,
            compared=compared,
            near_ties=tuple(
                NearTie(case="story", position=9 + 7 * i, margin=0.004, floor=0.011, ours=312, theirs=98)
                for i in range(ties)
            ),
        )
    if outcome == "fail":
        return Rung(
            name=name, outcome=outcome, why=why, metric=metric, measured=measured, limit=limit, compared=compared
        )
    return Rung(name=name, outcome=outcome, why=why)


def ladder(**changed):
    """Eight rungs that pass, but for those named: `operations=("fail", "why", 0.17)`."""
    rungs = []
    for name in RUNGS:
        outcome, why, measured = (*changed.get(name, ("pass", "", None)), None)[:3]
        rungs.append(rung(name, outcome, why, measured=measured))
    return tuple(rungs)


def lane(name, model, reference, rungs, **more):
    more.setdefault("required", True)
    required = more.setdefault("required_rungs", ("identity", "weights", "operations", "logits"))
    return Lane(
        name=name,
        model=model,
        reference=reference,
        rungs=rungs,
        outcome=lane_outcome(rungs, required),
        climbed=climb(rungs, required),
        numerics={"activation": "int8_token", "kv": "f32"},
        noise_floor=more.pop("noise_floor", NoiseFloor(metric="rel_l2", value=3e-7, how="batch against one by one")),
        **more,
    )


def lanes():
    none = ("inconclusive", "the rung below did not pass")
    after = dict.fromkeys(("logits", "decode", "greedy", "quality"), none)
    ties = tuple(rung(name, ties=2) if name == "greedy" else rung(name) for name in RUNGS)
    no_tokens = {"tokens": ("unsupported", "recorded outputs hold ids, not a tokenizer")}
    wrong = {"operations": ("fail", "ffn_act of layer 0 differs", 0.1694)}
    dead = "killed by signal 6; its last words: GGML_ASSERT(ne00 % 256 == 0) failed"
    made = [
        lane("tiny-relu2 · oracle", "tiny-relu2", "oracle", ladder()),
        lane("tiny-silu · oracle", "tiny-silu", "oracle", ladder()),
        lane("tiny-llama · oracle", "tiny-llama", "oracle", ladder()),
        lane("tiny-silu · llama.cpp F32", "tiny-silu", "llama.cpp", ladder()),
        lane("tiny-silu · llama.cpp TQ2_0", "tiny-silu", "llama.cpp", ties),
        lane("tiny-llama · llama.cpp F32", "tiny-llama", "llama.cpp", ladder()),
        lane("tiny-llama · llama.cpp TQ2_0", "tiny-llama", "llama.cpp", ladder()),
        lane(
            "tiny-relu2 · llama.cpp TQ2_0 (as bitnet)",
            "tiny-relu2",
            "llama.cpp",
            ladder(**wrong, **after),
            located=WRONG,
            blame="reference",
            cause=SILU,
            known_deviation=KnownDeviation(
                name="llama.cpp-silu", reason="llama.cpp computes SiLU for arch bitnet", status="proven"
            ),
            votes=(
                Vote(
                    rung="operations",
                    witnesses={"bitnet": "agrees", "oracle": "agrees", "llama.cpp": "differs"},
                    odd="llama.cpp",
                ),
            ),
        ),
        lane("b158_a · bitnet.cpp (recorded)", "tiny-relu2", "bitnet.cpp", ladder(**no_tokens)),
        lane("b158_hd128 · bitnet.cpp (recorded)", "tiny-relu2", "bitnet.cpp", ladder(**no_tokens)),
        lane(
            "bitnet_silu · bitnet.cpp (recorded)",
            "tiny-silu",
            "bitnet.cpp",
            ladder(**no_tokens),
            known_deviation=KnownDeviation(name="bitnet.cpp-rope", reason="an old build's rotary", status="stale"),
        ),
        lane(
            "llama_tied · bitnet.cpp (recorded)", "tiny-llama", "bitnet.cpp", ladder(weights=("error", dead), **after)
        ),
        lane(
            "tiny-relu2 · transformers",
            "tiny-relu2",
            "transformers",
            ladder(**dict.fromkeys(RUNGS, ("unsupported", "transformers is not installed: pip install '.[hf]'"))),
            required=False,
            noise_floor=None,
        ),
        lane(
            "my own 2B-4T model with a name that does not end · llama.cpp TQ1_0",
            "tiny-silu",
            "llama.cpp",
            ladder(operations=("fail", "k_rope of layer 2 differs", 0.041), **after),
            required=False,
            located=Located(tap="k_rope", layer=2, max_abs_err=0.2, max_abs_ref=4.9, limit=1e-6, worst_token=7),
            blame="engine",
            cause=Cause(name="", explained=0.12),
        ),
    ]
    return tuple(made)


def operation_rows(n_layer=4):
    return reports_rows.operation_rows(lanes(), TAPS, n_layer)


def profile_rows():
    return reports_rows.profile_rows(operation_rows())


def token_rows():
    return reports_rows.token_rows(lanes())


def position_rows():
    return reports_rows.position_rows(lanes())


def performance():
    random.seed(3)
    speeds = {
        ("bitnet", "prefill"): 2900,
        ("bitnet", "decode"): 410,
        ("llama.cpp", "prefill"): 2350,
        ("llama.cpp", "decode"): 395,
        ("oracle", "prefill"): 61,
    }
    made = []
    for model in MODELS:
        for (engine, what), speed in speeds.items():
            if (model, engine) == ("tiny-relu2", "llama.cpp"):
                continue
            tokens = 256 if what == "prefill" else 64
            seconds = tuple(tokens / (speed * random.uniform(0.9, 1.05)) for _ in range(5))
            made.append(timing(model, what, engine, tokens, seconds))
        made.append(timing(model, "load", "bitnet", 0, (0.21, 0.19, 0.2)))
        made.append(timing(model, "first_token", "bitnet", 1, (0.011, 0.012, 0.01)))
    return tuple(made)


def timing(model, what, engine, tokens, seconds):
    rates = sorted(tokens / s for s in seconds)
    return Performance(
        model=model,
        what=what,
        engine=engine,
        threads=2,
        tokens=tokens,
        seconds=seconds,
        tokens_per_second=rates[len(rates) // 2],
        n=len(seconds),
    )


def model(name):
    arch, activation = MODELS[name]
    return Model(
        name=name,
        file=f"{name}.i2_s.gguf",
        bytes=3_100_000,
        sha256=sha(name),
        arch=arch,
        activation=activation,
        activation_source="declared" if activation == "relu2" else "architecture",
        hyper_parameters=HyperParameters(
            n_layer=4,
            n_embd=256,
            n_ff=768,
            n_head=4,
            n_head_kv=2,
            head_dim=64,
            n_vocab=1024,
            n_ctx=512,
            rope_theta=1e4,
            rms_eps=1e-5,
            sub_norms=arch != "llama",
            tied_head=arch != "llama",
        ),
        tensor_types={"I2_S": 28, "F16": 1, "F32": 17},
        weights_sha256=sha(name + "weights"),
        notices=("no pre-tokenizer is declared: `llama-bpe` assumed",) if name == "tiny-silu" else (),
    )


def references():
    check = SelfCheck(question="activation", expected="silu", found="silu", outcome="pass")
    wrong = SelfCheck(question="activation", expected="relu2", found="silu", outcome="fail")
    return (
        Reference(key="oracle", name="oracle", family="oracle", version="1", obtained="live", self_check=(check,)),
        Reference(
            key="llama.cpp",
            name="llama.cpp",
            family="ggml",
            version="b6789",
            obtained="live",
            library_sha256=sha("libllama"),
            numerics={"activation": "q8_k", "kv": "f32"},
            model_sha256=sha("copy"),
            detail={"threads": "2"},
            self_check=(check, wrong),
        ),
        Reference(key="bitnet.cpp", name="bitnet.cpp", family="ggml", version="40ed0f29", obtained="recorded"),
        Reference(
            key="transformers",
            name="transformers",
            family="transformers",
            version="",
            obtained="unavailable",
            detail={"why": "not installed"},
        ),
    )


def receipt(**changes):
    fields = {
        "timestamp": "2026-11-21T02:52:02Z",
        "identity": Identity(
            run_id="0123",
            command="nox -s crossval",
            package_version="0.1.0",
            started="2026-11-21T02:50:48Z",
            seconds=73.8,
            git_commit="da57638",
            git_dirty=False,
        ),
        "environment": Environment(
            os="Linux 6.1", machine="x86_64", cpu="A CPU", python="3.11.7", cores=2, packages={"numpy": "2.3.1"}
        ),
        "claims": Claims(
            supports=("The engine computes what the file declares, operation by operation.",),
            does_not=("Speed on another machine.",),
        ),
        "models": tuple(model(name) for name in MODELS),
        "tokenizers": tuple(
            TokenizerRecord(
                model=name,
                source="embedded",
                sha256=sha(name + "tokenizer"),
                kind="spm" if name == "tiny-llama" else "bpe",
                pre="" if name == "tiny-llama" else "llama-bpe",
                pre_source="declared",
                n_vocab=1024,
            )
            for name in MODELS
        ),
        "ledger": tuple(
            Ledger(
                model=name,
                tokens=512,
                passes=80,
                head_rows=512,
                entries=(
                    LedgerEntry(
                        kernel="cpu.i2_s.dot",
                        role="projection",
                        weight_type="I2_S",
                        isa="avx2",
                        calls=80 * 28,
                        rows=512 * 4 * 2560,
                        bytes=10**9,
                        fallback="no",
                    ),
                ),
                numerics={"activation": "int8_token", "kv": "f32"},
            )
            for name in MODELS
        ),
        "cases": tuple(
            Case(
                name=case,
                model=name,
                prompt_ids=tuple(range(14)),
                ids_sha256=sha(case),
                logits_sha256=sha(case + name),
                logits_shape=(32, 1024),
                generated_ids=tuple(range(18)),
                top_k=(TopK(position=13, ids=(5, 3), logits=(4.2, 3.9)),),
            )
            for name in MODELS
            for case in ("story", "question")
        ),
        "references": references(),
        "lanes": lanes(),
        "accuracy": (
            Accuracy(
                weight_type="I2_S",
                kernel="cpu.i2_s.dot",
                metric="max_abs_err / max_abs_ref",
                measured=0.0,
                limit=1e-6,
                passed=True,
                compared=4096,
            ),
        ),
        "determinism": (
            Determinism(
                what="threads",
                settings=("1", "2", "3"),
                runs=tuple(Run(setting=s, logits_sha256=sha("l"), ids_sha256=sha("i")) for s in "123"),
                equal=True,
            ),
        ),
        "performance": performance(),
    }
    return receipts.assemble(**{**fields, **changes})


def write(folder, lanes=None):
    """The receipt in a file with its side files, of all lanes or of some; its path."""
    path = folder / "inference.json"
    names = {item.name for item in lanes or ()}
    tables = {
        "operations": operation_rows(),
        "positions": position_rows(),
        "profiles": profile_rows(),
        "tokens": token_rows(),
    }
    made = receipt(lanes=lanes) if lanes else receipt()
    mine = {name: [row for row in rows if not names or row["lane"] in names] for name, rows in tables.items()}
    receipts.write(made, path, mine)
    return path


#: What a stranger could put where a word stands; each is different, so that a test can say which one was run.
NASTY = {
    "tiny-relu2": "<script>window.hit='lane'</script>",
    "story": "</script><script>window.hit='data'</script><!--",
    "ffn_act": "\"onmouseover=\"window.hit='attribute'",
    " word4": "<img src=x onerror=window.hit='token'>",
    "computes SiLU": "\u202ecomputes\u2066 \u0007 SiLU </title></style>{{ 7 * 7 }}",
    "A CPU": "javascript:window.hit='cpu'",
    "The engine computes": "<!--<script>\u2028 &lt;b&gt; ]]>",
}


def hostile(folder):
    """The receipt of `write` with hostile words in names, sentences, prompts and tokens; its path."""
    path = write(folder)
    data, tables = json.loads(path.read_text("utf-8")), {}
    for side in data["side_files"]:
        tables[side["table"]] = nasty(json.loads((folder / side["file"]).read_text("utf-8")))
    made = receipts.Receipt.from_dict(nasty(data))
    receipts.write(made, path, tables)
    return path


def nasty(data):
    """JSON types with the words of `NASTY` replaced."""
    text = json.dumps(data)
    for word, replacement in NASTY.items():
        text = text.replace(word, json.dumps(replacement)[1:-1])
    return json.loads(text)


def empty():
    nothing = dict.fromkeys(
        ("models", "tokenizers", "ledger", "cases", "references", "lanes", "accuracy", "determinism", "performance"), ()
    )
    return receipt(**nothing, claims=Claims())
