"""What an architecture promises, what a file declares, and what is refused: with the key, and a reason."""

from __future__ import annotations

import numpy as np
import pytest

from bitnet import architecture
from bitnet.architecture import CONTRACTS, read_config
from bitnet.errors import GGUFError, ModelFileError
from bitnet.formats import KERNEL_CONFIG_KEY
from bitnet.gguf import GGMLType, TensorData, ValueType, read, write

REQUIRED = {
    "block_count": 3,
    "embedding_length": 64,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.layer_norm_rms_epsilon": 1e-5,
}
ABSENT = object()


def config(tmp_path, arch="bitnet-b1.58", /, *, output=False, embd="token_embd.weight", **changes):
    """Of a file with the required keys, some changed; `__` in a name stands for a dot."""
    keys = REQUIRED | {name.replace("__", "."): value for name, value in changes.items()}
    metadata = {f"{arch}.{name}": value for name, value in keys.items() if value is not ABSENT}
    if arch is not ABSENT:
        metadata["general.architecture"] = arch
    names = [embd, "output.weight"] if output else [embd]
    data = np.zeros(32 * 64, np.float32).view(np.uint8)
    write(
        tmp_path / "m.gguf", metadata, [TensorData(name=n, shape=(32, 64), type=GGMLType.F32, data=data) for n in names]
    )
    return read_config(read(tmp_path / "m.gguf"))


@pytest.mark.parametrize(
    ("arch", "activation", "rope_style", "sub_norms"),
    [
        ("bitnet-b1.58", "relu2", "half_split", True),
        ("bitnet-25", "relu2", "half_split", True),
        ("bitnet", "silu", "half_split", True),
        ("llama", "silu", "interleaved", False),
    ],
)
def test_contracts(tmp_path, arch, activation, rope_style, sub_norms):
    c, notices = config(tmp_path, arch)
    assert (c.arch, c.activation, c.rope_style, c.sub_norms) == (arch, activation, rope_style, sub_norms)
    assert c.activation_source == "architecture"
    assert notices == (f"no activation is declared; {activation} is the default of architecture {arch}",)
    assert c.tied_head
    with_output, _ = config(tmp_path, arch, output=True)
    assert with_output.tied_head is (arch != "llama")  # bitnet.cpp's bitnet graphs never read it


@pytest.mark.parametrize("arch", CONTRACTS)
def test_where_the_head_is(tmp_path, arch):
    """Declared nothing, true or false; without `output.weight` and with it."""
    key = f"{arch}.tie_word_embeddings"
    usual = config(tmp_path, arch)[1]
    assert config(tmp_path, arch, tie_word_embeddings=True)[0].tied_head
    with pytest.raises(GGUFError, match=r"is false, so .* output\.weight is missing\n.*incomplete") as caught:
        config(tmp_path, arch, tie_word_embeddings=False)
    assert (caught.value.field, caught.value.exit_code) == (key, 3)
    assert config(tmp_path, arch, output=True)[1] == usual
    c, notices = config(tmp_path, arch, output=True, tie_word_embeddings=False)
    assert (c.tied_head, notices) == (False, usual)
    c, notices = config(tmp_path, arch, output=True, tie_word_embeddings=True)
    assert c.tied_head is (arch != "llama")
    assert [n for n in notices if n not in usual] == ([] if c.tied_head else [HEAD_NOTE])
    for output in (False, True):
        with pytest.raises(GGUFError, match="UINT32, but bool is due"):
            config(tmp_path, arch, output=output, tie_word_embeddings=(ValueType.UINT32, 1))


HEAD_NOTE = (
    "llama.tie_word_embeddings is true, but the file has an output.weight, which is the head of every llama file that "
    "has one"
)


def test_every_contract_was_tested():
    assert set(CONTRACTS) == {"bitnet-b1.58", "bitnet-25", "bitnet", "llama"}


def test_values_and_defaults(tmp_path):
    c, _ = config(tmp_path)
    assert (c.n_layer, c.n_embd, c.n_ff, c.n_head, c.n_head_kv, c.head_dim, c.n_vocab) == (3, 64, 96, 4, 4, 16, 32)
    assert (c.n_ctx, c.rope_theta, c.rms_eps) == (2048, 10000.0, float(np.float32(1e-5)))
    c, _ = config(
        tmp_path,
        attention__head_count_kv=2,
        attention__key_length=32,
        attention__value_length=32,
        rope__dimension_count=32,
        rope__freq_base=5e5,
        context_length=77,
    )
    assert (c.n_head_kv, c.head_dim, c.n_q, c.n_kv, c.rope_theta, c.n_ctx) == (2, 32, 128, 64, 5e5, 77)
    assert config(tmp_path, rope__dimension_count=32)[0].head_dim == 32  # bitnet.cpp requires the two to be equal
    assert config(tmp_path, rope__freq_base=10000)[0].rope_theta == 10000.0  # an integer is a number


@pytest.mark.parametrize("key", ["hidden_activation", "hidden_act"])
@pytest.mark.parametrize(("spelling", "meant"), [("relu2", "relu2"), ("ReLU_squared", "relu2"), ("swish", "silu")])
def test_a_declared_activation_wins_and_a_surprising_one_is_said(tmp_path, key, spelling, meant):
    c, notices = config(tmp_path, "bitnet", **{key: spelling})
    assert (c.activation, c.activation_source) == (meant, "declared")
    if meant == "relu2":
        [note] = notices
        assert note == f"bitnet.{key} declares relu2; the default of bitnet is silu; the declaration wins"
    else:
        assert notices == ()


@pytest.mark.parametrize("value", ["gelu", "", 7])
def test_an_unknown_activation_is_refused(tmp_path, value):
    with pytest.raises(GGUFError, match=r"unknown.*\n.*relu2 and silu") as caught:
        config(tmp_path, hidden_activation=value)
    assert caught.value.field == "bitnet-b1.58.hidden_activation"


@pytest.mark.parametrize("arch", ["gpt2", "BitNet", "", "bitnet-b1.58 "])
def test_an_unknown_architecture_is_refused(tmp_path, arch):
    with pytest.raises(ModelFileError, match=r"is not one this engine knows\n.*bitnet, bitnet-25") as caught:
        config(tmp_path, arch)
    assert repr(arch) in str(caught.value)


def test_a_missing_or_odd_architecture_is_refused(tmp_path):
    with pytest.raises(ModelFileError, match="architecture None"):
        config(tmp_path, ABSENT)
    write(tmp_path / "list.gguf", {"general.architecture": ["llama"]}, [])
    with pytest.raises(ModelFileError, match="is not one this engine knows"):
        read_config(read(tmp_path / "list.gguf"))


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_hyper_parameter_is_named(tmp_path, key):
    with pytest.raises(GGUFError, match="missing") as caught:
        config(tmp_path, **{key: ABSENT})
    assert caught.value.field == f"bitnet-b1.58.{key}"


WHOLE = ("block_count", "embedding_length", "feed_forward_length", "attention.head_count", "attention.head_count_kv")
OTHERS = ("attention.key_length", "attention.value_length", "rope.dimension_count", "context_length")


@pytest.mark.parametrize("key", [*WHOLE, *OTHERS, "rope.freq_base", "attention.layer_norm_rms_epsilon"])
@pytest.mark.parametrize("value", [0, (ValueType.INT32, -4), "16", True, [16, 16]])
def test_no_hyper_parameter_is_zero_negative_or_of_another_kind(tmp_path, key, value):
    with pytest.raises(GGUFError) as caught:
        config(tmp_path, **{key: value})
    assert caught.value.field == f"bitnet-b1.58.{key}"


@pytest.mark.parametrize("key", [*WHOLE, *OTHERS])
def test_a_count_is_no_float(tmp_path, key):
    with pytest.raises(GGUFError, match="not a number") as caught:
        config(tmp_path, **{key: 16.0})
    assert caught.value.field == f"bitnet-b1.58.{key}"


@pytest.mark.parametrize("key", ["rope.freq_base", "attention.layer_norm_rms_epsilon"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), -1.0, 0.0])
def test_a_real_is_finite_and_positive(tmp_path, key, value):
    with pytest.raises(GGUFError, match="must be positive") as caught:
        config(tmp_path, **{key: value})
    assert caught.value.field == f"bitnet-b1.58.{key}"


@pytest.mark.parametrize(
    ("changes", "field", "reason"),
    [
        ({"attention__head_count_kv": 3}, "attention.head_count_kv", "4 heads do not divide by 3"),
        ({"attention__head_count_kv": 8}, "attention.head_count_kv", "4 heads do not divide by 8"),
        ({"attention__key_length": 24}, "attention.key_length", "head_dim 24 is not a multiple of 16"),
        ({"attention__head_count": 3}, "attention.key_length", "head_dim 21"),
        ({"attention__head_count": 100}, "attention.key_length", "head_dim 1 "),
        ({"attention__value_length": 32}, "attention.value_length", "32 differs from key_length 16"),
        (
            {"attention__key_length": 16, "rope__dimension_count": 8},
            "rope.dimension_count",
            "8 differs from head_dim 16",
        ),
        ({"rope__scaling__type": "yarn"}, "rope.scaling.type", "'yarn' is not supported"),
        ({"rope__scaling__type": 3}, "rope.scaling.type", "STRING|str"),
        ({"rope__scaling__factor": 4.0}, "rope.scaling.factor", "by 4 is not supported"),
        ({"rope__scale_linear": 8.0}, "rope.scale_linear", "by 8 is not supported"),
        ({"rope__scaling__type": "linear", "rope__scale_linear": 8.0}, "rope.scale_linear", "by 8 is not supported"),
        ({"rope__scaling__factor": -1.0}, "rope.scaling.factor", "must be positive"),
        ({"rope__scale_linear": [8.0, 8.0]}, "rope.scale_linear", "not a number"),
        ({"rope__scaling__attn_factor": 0.5}, "rope.scaling.attn_factor", "0.5 is not supported"),
        ({"attention__scale": 0.5}, "attention.scale", "scores by 0.5 is not supported"),
        ({"attention__sliding_window": 512}, "attention.sliding_window", "the last 512 tokens alone is not supported"),
        ({"attention__clamp_kqv": [8.0, 8.0]}, "attention.clamp_kqv", "is not supported"),
        ({"embedding_length": 72, "attention__key_length": 16}, "embedding_length", "72 is not a multiple of 16"),
        ({"feed_forward_length": 100}, "feed_forward_length", "100 is not a multiple of 16"),
        ({"block_count": 1025}, "block_count", "1025 layers are more"),
        ({"context_length": 2**24 + 1}, "context_length", "tokens are more"),
    ],
)
def test_contradictions_are_refused(tmp_path, changes, field, reason):
    with pytest.raises(GGUFError, match=reason) as caught:
        config(tmp_path, **changes)
    assert caught.value.field == f"bitnet-b1.58.{field}"
    unsupported = "multiple" in reason or "head_dim" in reason or "supported" in reason or "differs" in reason
    assert ("run the file with the engine" in caught.value.remedy) is unsupported
    assert ("damaged" in caught.value.remedy) is (not unsupported and "STRING" not in reason)


@pytest.mark.parametrize("eps", [1e300, 2.0**128, 1e-46, 1e-300])
def test_an_epsilon_is_a_number_of_float32(tmp_path, eps):
    with pytest.raises(GGUFError, match="no number of float32") as caught:
        config(tmp_path, attention__layer_norm_rms_epsilon=(ValueType.FLOAT64, eps))
    assert caught.value.field.endswith("epsilon")


@pytest.mark.parametrize(
    "changes",
    [
        {"rope__scaling__type": "none"},
        {"rope__scaling__type": "none", "rope__scaling__factor": 4.0, "rope__scale_linear": 4.0},
        {"rope__scaling__type": "linear", "rope__scaling__factor": 1.0},
        {"rope__scaling__factor": 0.0, "rope__scale_linear": 0.0},  # as llama.cpp writes that there is none
        {"rope__scale_linear": 1.0},
        {"attention__scale": 0.25},  # 1 / √head_dim
        {"attention__scale": 0.0, "attention__sliding_window": 0},
        {"attention__sliding_window": 2048},  # the context
    ],
)
def test_what_asks_for_nothing_changes_nothing(tmp_path, changes):
    assert config(tmp_path, **changes) == config(tmp_path)


@pytest.mark.parametrize("arch", ["bitnet-b1.58", "llama"])
@pytest.mark.parametrize("key", architecture._WITHOUT_EFFECT)
def test_what_other_graphs_compute_is_refused(tmp_path, arch, key):
    for value in architecture._WITHOUT_EFFECT[key]:
        assert config(tmp_path, arch, **{key: value}) == config(tmp_path, arch)
    boolean = isinstance(architecture._WITHOUT_EFFECT[key][0], bool)
    for value in (not architecture._WITHOUT_EFFECT[key][0],) if boolean else (2, 0.5, float("nan"), "2"):
        with pytest.raises(GGUFError, match=r"is not supported\n.*engine that it was made for") as caught:
            config(tmp_path, arch, **{key: value})
        assert caught.value.field == f"{arch}.{key}"


def test_a_hyper_parameter_that_nobody_knows_is_told(tmp_path):
    usual = config(tmp_path)[1]
    assert config(tmp_path, vocab_size=32, rope__scaling__finetuned=False)[1] == usual
    *before, note = config(tmp_path, new_gate=1)[1]
    assert tuple(before) == usual
    assert note == "hyper-parameters that are unknown here and change nothing: bitnet-b1.58.new_gate"
    assert config(tmp_path, **{f"new_{i}": i for i in range(7)})[1][-1].endswith("new_4 and 2 more")


def test_the_key_of_the_tiles_is_known_to_the_architecture_of_its_name(tmp_path):
    assert KERNEL_CONFIG_KEY == "bitnet.kernel_config"
    assert config(tmp_path, "bitnet", kernel_config="[tiles]") == config(tmp_path, "bitnet")
    assert config(tmp_path, "llama", kernel_config="[tiles]")[1][-1].endswith("llama.kernel_config")


def test_a_vocabulary_is_no_larger_than_the_embedding(tmp_path):
    for size in (0, 20, 32):
        assert config(tmp_path, vocab_size=size) == config(tmp_path)
    for size, what in (
        (33, "is 33, but the embedding has 32 rows"),
        ("32", "is '32', not a number"),
        (1.5, "not a number"),
    ):
        with pytest.raises(GGUFError, match=what) as caught:
            config(tmp_path, vocab_size=size)
        assert caught.value.field == "bitnet-b1.58.vocab_size"


def test_the_embedding_gives_the_vocabulary_and_must_be_there(tmp_path):
    with pytest.raises(ModelFileError, match=r"token_embd\.weight is missing"):
        config(tmp_path, embd="embd.weight")
