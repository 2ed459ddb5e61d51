"""The taps of llama.cpp are what they are called, and watching changes nothing.

Every operation is recomputed here in float64 from its captured inputs, with the activation rounding that the
runner declares. Limits are relative to the largest value of the reference: 1e-6 is what honest agreement of one
float32 operation on locked inputs is.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_models
from tiny_models import live

from reference.llama_cpp_build import ensure_library
from reference.llama_cpp_taps import NODES, Capture, tap_of
from reference.process import ProcessRunner
from reference.runner import FIRST_TAPS, LAST_TAPS, LAYER_TAPS, Request, tap_order

FIXTURES = Path(__file__).parent.parent / "fixtures" / "models"
SUB_NORMS = {"attn_sub_norm", "ffn_sub_norm"}
IDS = (1, 45, 300, 7, 7, 19, 254, 0, 88, 121, 6, 33)
LOCKED = 1e-6
ASK, DONE = True, False  # the two questions of ggml's callback


@pytest.fixture(scope="module")
def library() -> Path:
    return ensure_library()


@pytest.fixture(scope="module")
def models(tmp_path_factory, library):
    return tiny_models.Models(tmp_path_factory.mktemp("models"))


def off(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest error relative to the largest value; NaN stays NaN, which fails every comparison."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def rounded(x: np.ndarray, activation: str) -> np.ndarray:
    """x: [T, n] f32, as ggml rounds it before a product."""
    match activation:
        case "none" | "f32":
            return x.astype(np.float64)
        case "f16":
            return x.astype(np.float16).astype(np.float64)
        case "bf16":
            kind = gguf.GGMLQuantizationType.BF16
            return gguf.quants.dequantize(gguf.quants.quantize(x, kind), kind).astype(np.float64)
        case "q8_0":
            blocks = x.reshape(len(x), -1, 32)
            amax = np.abs(blocks).max(axis=-1, keepdims=True)
            scale = (amax / np.float32(127)).astype(np.float16).astype(np.float64)
            inverse = np.where(amax > 0, np.float32(127) / np.where(amax > 0, amax, 1), 0).astype(np.float32)
            return (np.rint(blocks * inverse) * scale).reshape(x.shape)
        case "q8_k":
            blocks = x.reshape(len(x), -1, 256)
            largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)
            inverse = np.float32(-127) / largest
            return (np.minimum(127, np.rint(blocks * inverse)) * (1 / inverse).astype(np.float64)).reshape(x.shape)
    raise AssertionError(activation)


def rms_norm(x, weight, eps=1e-5):
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + eps) * weight


def rope(x, n_head, style, theta):
    """x: [T, n_head · d]; pairs (i, i + d/2) for half_split, (2i, 2i + 1) for interleaved."""
    x = x.astype(np.float64).reshape(len(x), n_head, -1)
    d = x.shape[-1]
    angle = np.arange(len(x))[:, None] * theta ** (-np.arange(0, d, 2) / d)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    first, second = (slice(0, d // 2), slice(d // 2, d)) if style == "half_split" else (slice(0, d, 2), slice(1, d, 2))
    turned = np.empty_like(x)
    turned[..., first] = x[..., first] * cos - x[..., second] * sin
    turned[..., second] = x[..., first] * sin + x[..., second] * cos
    return turned.reshape(len(x), -1)


def attention(q, k, v, n_head, n_head_kv):
    """Causal, grouped heads; q: [T, n_head · d], k and v: [T, n_head_kv · d]."""
    n = len(q)
    q, k, v = (x.astype(np.float64).reshape(n, heads, -1) for x, heads in ((q, n_head), (k, n_head_kv), (v, n_head_kv)))
    k, v = (np.repeat(x, n_head // n_head_kv, axis=1) for x in (k, v))
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[-1])
    scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
    probs = np.exp(scores - scores.max(axis=-1, keepdims=True))
    probs /= probs.sum(axis=-1, keepdims=True)
    return np.einsum("hts,shd->thd", probs, v).reshape(n, -1)


def recomputed(runner: ProcessRunner, taps, ids, hyper):
    """Every tap again from the captured inputs: {tap: [T, width] f64}."""
    arch, numerics = runner.info.detail["arch"], runner.info.numerics
    scales = {name for name in hyper["tensors"] if name.endswith(".scale")}

    def product(name, x):
        scale = runner.weights(f"{name}.scale")[0, 0] if f"{name}.scale" in scales else np.float32(1)
        return rounded(x, numerics["activation"]) @ runner.weights(f"{name}.weight").astype(np.float64).T * scale

    head = "output.weight" if "output.weight" in hyper["tensors"] else "token_embd.weight"
    found = {("embd", -1): runner.weights("token_embd.weight")[list(ids)].astype(np.float64)}
    x = taps["embd", -1]
    for il in range(hyper["n_layer"]):
        t = {name: taps[name, il] for name in LAYER_TAPS if (name, il) in taps}
        norm = {name: runner.weights(f"blk.{il}.{name}.weight") for name in ("attn_norm", "ffn_norm")}
        style = "half_split" if arch == "bitnet" else "interleaved"
        new = {"attn_norm": rms_norm(x, norm["attn_norm"])}
        new |= {name: product(f"blk.{il}.attn_{name}", t["attn_norm"]) for name in ("q", "k", "v")}
        new["q_rope"] = rope(t["q"], hyper["n_head"], style, hyper["theta"])
        new["k_rope"] = rope(t["k"], hyper["n_head_kv"], style, hyper["theta"])
        new["kqv_out"] = attention(t["q_rope"], t["k_rope"], t["v"], hyper["n_head"], hyper["n_head_kv"])
        if "attn_sub_norm" in t:
            new["attn_sub_norm"] = rms_norm(t["kqv_out"], runner.weights(f"blk.{il}.attn_sub_norm.weight"))
            new["ffn_sub_norm"] = rms_norm(t["ffn_act"], runner.weights(f"blk.{il}.ffn_sub_norm.weight"))
        new["attn_out"] = product(f"blk.{il}.attn_output", t.get("attn_sub_norm", t["kqv_out"]))
        new["ffn_inp"] = x + t["attn_out"]  # float32: one addition has one right answer
        new["ffn_norm"] = rms_norm(t["ffn_inp"], norm["ffn_norm"])
        new |= {name: product(f"blk.{il}.{name}", t["ffn_norm"]) for name in ("ffn_gate", "ffn_up")}
        gate = t["ffn_gate"].astype(np.float64)
        new["ffn_act"] = gate / (1 + np.exp(-gate)) * t["ffn_up"]
        new["ffn_down"] = product(f"blk.{il}.ffn_down", t.get("ffn_sub_norm", t["ffn_act"]))
        new["l_out"] = t["ffn_inp"] + t["ffn_down"]
        found |= {(name, il): value for name, value in new.items()}
        x = t["l_out"]
    found["result_norm", -1] = rms_norm(x, runner.weights("output_norm.weight"))
    found["result_output", -1] = (
        rounded(taps["result_norm", -1], numerics["head"]) @ runner.weights(head).astype(float).T
    )
    return found


def hyper_parameters(model: Path) -> dict:
    reader = gguf.GGUFReader(model)
    arch = str(reader.fields["general.architecture"].contents())
    return {
        "tensors": {tensor.name for tensor in reader.tensors},
        "n_layer": int(reader.fields[f"{arch}.block_count"].contents()),
        "n_head": int(reader.fields[f"{arch}.attention.head_count"].contents()),
        "n_head_kv": int(reader.fields[f"{arch}.attention.head_count_kv"].contents()),
        "theta": float(reader.fields[f"{arch}.rope.freq_base"].contents()),
    }


def check_taps_multiply_out(model: Path, ids) -> None:
    hyper = hyper_parameters(model)
    with live(model) as runner:
        plain = runner.run(Request(ids=ids))
        seen = runner.run(Request(ids=ids, taps=True))
        assert np.abs(plain.logits - seen.logits).max() == 0.0
        order = tap_order(hyper["n_layer"])
        absent = SUB_NORMS if runner.info.detail["arch"] == "llama" else set()
        assert list(seen.taps) == [key for key in order if key[0] not in absent]
        assert np.array_equal(seen.taps["result_output", -1], seen.logits)
        expected = recomputed(runner, seen.taps, ids, hyper)
        assert set(expected) == set(seen.taps)
        for (name, layer), value in expected.items():
            tap = seen.taps[name, layer]
            if name in {"ffn_inp", "l_out", "embd"}:
                assert np.array_equal(tap, value), (name, layer)
            else:
                # angles: float32, iterated, against float64 (1.5e-6 measured at 1000 positions)
                assert off(tap, value) <= (2e-6 if "rope" in name else LOCKED), (name, layer, off(tap, value))


@pytest.mark.parametrize("arch", ["bitnet", "llama"])
@pytest.mark.parametrize(
    "types", [("F32", "F32"), ("F16", "F16"), ("BF16", "BF16"), ("Q8_0", "F32"), ("TQ1_0", "F16"), ("TQ2_0", "F16")]
)
def test_taps_multiply_out_and_watching_changes_nothing(models, arch, types):
    check_taps_multiply_out(models(arch, *types), IDS)


@pytest.mark.parametrize("name", ["tiny-silu.f32", "tiny-silu.tq2_0", "tiny-llama.f32", "tiny-llama.tq2_0"])
def test_taps_of_the_fixtures_multiply_out(library, name):
    check_taps_multiply_out(FIXTURES / f"{name}.gguf", tuple(range(5, 25)))


def test_what_the_check_would_say_to_another_activation_rounding(models):
    """The recomputation tells the declared quantiser from none: it is no comparison that always passes."""
    model = models("bitnet", "TQ2_0", "F16")
    with live(model) as runner:
        taps = runner.run(Request(ids=IDS, taps=True)).taps
        weight, scale = runner.weights("blk.0.attn_q.weight").astype(float), runner.weights("blk.0.attn_q.scale")[0, 0]
        for activation, least in (("none", 1e-3), ("f16", 1e-3), ("q8_0", 1e-4)):
            wrong = rounded(taps["attn_norm", 0], activation) @ weight.T * scale
            assert off(taps["q", 0], wrong) > least


@pytest.mark.parametrize(("kv", "flash"), [("f16", False), ("f32", True)])
def test_other_caches_round_inside_attention_and_say_so(models, kv, flash):
    """F32 cache without flash attention is within LOCKED above; the others are not."""
    with live(models("bitnet", "F32"), kv=kv, flash_attention=flash) as runner:
        assert {runner.info.numerics[name] for name in ("query", "probs")} == {"f16"}
        taps = runner.run(Request(ids=IDS, taps=True)).taps
        exact = attention(taps["q_rope", 0], taps["k_rope", 0], taps["v", 0], tiny_models.N_HEAD, tiny_models.N_HEAD_KV)
        assert off(taps["kqv_out", 0], exact) > 1e-5


@pytest.mark.parametrize(
    ("name", "operation", "tap"),
    [
        ("embd", "GET_ROWS", ("embd", -1)),
        ("Qcur-0", "MUL_MAT", ("q", 0)),
        ("Qcur-0", "MUL", ("q", 0)),  # by its scale
        ("Qcur-0", "ADD", ("q", 0)),  # of its bias
        ("Qcur-0", "RESHAPE", None),
        ("Qcur-12", "ROPE", ("q_rope", 12)),
        ("Kcur-3", "ROPE", ("k_rope", 3)),
        ("Vcur-3", "RESHAPE", None),
        ("kqv_out-1", "CONT", ("kqv_out", 1)),
        ("kqv_out-1", "RESHAPE", ("kqv_out", 1)),  # of flash attention
        ("ffn_up_s-1", "MUL", ("ffn_up", 1)),
        ("ffn_sub_out-1", "SWIGLU", ("ffn_act", 1)),
        ("ffn_out-1", "MUL_MAT", ("ffn_down", 1)),
        ("result_output", "MUL_MAT", ("result_output", -1)),
        ("norm-1", "RMS_NORM", None),
        ("node_17", "MUL_MAT", None),
        ("blk.0.attn_q.weight", "NONE", None),
        ("inp_embd", "NONE", None),
        ("cache_k_l0 (view)", "VIEW", None),
        ("", "NONE", None),
        ("-1", "ADD", None),
        ("Qcur-", "MUL_MAT", None),
        ("Qcur--1", "MUL_MAT", None),
    ],
)
def test_which_tap_a_node_is(name, operation, tap):
    assert tap_of(name, operation) == tap


def test_every_tap_has_a_node():
    assert {*NODES.values(), "q_rope", "k_rope"} == {*FIRST_TAPS, *LAYER_TAPS, *LAST_TAPS}


class Graph:
    """Stands for libggml: tensors are numbers into a list of (name, operation, values [T, width])."""

    def __init__(self, *nodes):
        self.nodes = nodes

    def name(self, tensor):
        return self.nodes[tensor][0]

    def operation(self, tensor):
        return self.nodes[tensor][1]

    def read(self, tensor):
        values = np.asarray(self.nodes[tensor][2], np.float32)
        return values.ravel(), (values.shape[1], values.shape[0], 1, 1)

    def evaluate(self, capture):
        for tensor in range(len(self.nodes)):
            if capture.callback(tensor, ASK, None):
                assert capture.callback(tensor, DONE, None)


def test_the_last_node_of_a_tap_counts_and_evaluations_follow_each_other():
    graph = Graph(("embd", "GET_ROWS", [[1]]), ("ffn_up-0", "MUL_MAT", [[2]]), ("ffn_up_s-0", "MUL", [[3]]))
    capture = Capture(graph)
    graph.evaluate(capture)
    capture.on = True
    graph.evaluate(capture)
    graph.evaluate(capture)
    capture.on = False
    graph.evaluate(capture)
    taps = capture.taps(2)
    assert taps["ffn_up", 0].tolist() == [[3], [3]]
    with pytest.raises(ValueError, match="2 rows for 3 tokens"):
        capture.taps(3)


def test_graphs_that_differ_are_not_joined():
    capture = Capture(Graph())
    capture.on = True
    for nodes in ([("embd", "GET_ROWS", [[1]])], [("embd", "GET_ROWS", [[1]]), ("l_out-0", "ADD", [[1]])]):
        capture._ggml = Graph(*nodes)
        capture._ggml.evaluate(capture)
    with pytest.raises(ValueError, match="different nodes"):
        capture.taps(2)


def test_the_callback_never_raises_into_ggml():
    capture = Capture(Graph(("embd", "GET_ROWS", "not numbers")))
    capture.on = True
    assert capture.callback(0, DONE, None)  # go on computing
    assert capture.callback(99, ASK, None)
    with pytest.raises(ValueError, match="failed 2 times"):
        capture.taps(1)


def test_nothing_is_captured_unless_asked():
    assert Capture(Graph()).taps(5) == {}
