"""Taps of a torch model: recorded by row, replaced in place, and the model as it was afterwards."""

import types

import numpy as np
import pytest

from reference.hf_taps import Taps

pytestmark = pytest.mark.hf


@pytest.fixture
def tiny():
    torch = pytest.importorskip("torch")

    class Attention(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.q_proj, self.k_proj, self.v_proj, self.o_proj = (torch.nn.Linear(4, 4, bias=False) for _ in range(4))

        def forward(self, x):
            q, k = (p(x).view(1, -1, 1, 4).transpose(1, 2) for p in (self.q_proj, self.k_proj))
            q, k = rotary.apply_rotary_pos_emb(q, k)
            return self.o_proj((q + k).transpose(1, 2).flatten(2) + self.v_proj(x))

    class Mlp(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.gate_proj, self.up_proj, self.down_proj = (torch.nn.Linear(4, 4, bias=False) for _ in range(3))

        def forward(self, x):
            return self.down_proj(self.gate_proj(x) * self.up_proj(x))

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.input_layernorm, self.post_attention_layernorm = torch.nn.LayerNorm(4), torch.nn.LayerNorm(4)
            self.self_attn, self.mlp = Attention(), Mlp()

        def forward(self, x):
            x = x + self.self_attn(self.input_layernorm(x))
            return x + self.mlp(self.post_attention_layernorm(x))

    rotary = types.SimpleNamespace(apply_rotary_pos_emb=lambda q, k: (q * 2, k * 3))
    torch.manual_seed(0)
    body = torch.nn.Module()
    body.embed_tokens, body.norm = torch.nn.Embedding(8, 4), torch.nn.LayerNorm(4)
    body.layers = torch.nn.ModuleList([Layer(), Layer()])
    model = torch.nn.Module()
    model.model, model.lm_head = body, torch.nn.Linear(4, 8, bias=False)

    def forward(ids):
        x = body.embed_tokens(torch.tensor([ids]))
        for layer in body.layers:
            x = layer(x)
        return model.lm_head(body.norm(x))

    return torch, model, rotary, forward


def run(tiny, lock=None, orders=None, ids=(1, 2, 3)):
    torch, model, rotary, forward = tiny
    taps = Taps(torch, model, rotary, orders or {})
    taps.on = True
    with torch.inference_mode(), taps.hooked():
        taps.begin(0, lock)
        out = forward(list(ids)).numpy()[0]
    return taps.recorded(), out


def test_every_place_is_seen_once_and_the_hooks_go(tiny):
    seen, out = run(tiny)
    assert set(seen) >= {("embd", -1), ("q_rope", 0), ("kqv_out", 1), ("ffn_inp", 1), ("ffn_act", 0), ("l_out", 1)}
    assert all(value.shape == (3, 8 if key == ("result_output", -1) else 4) for key, value in seen.items())
    assert (seen["result_output", -1] == out).all()
    assert (seen["q_rope", 0] == 2 * seen["q", 0]).all()
    modules = [m for m in tiny[1].modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not modules


def test_a_locked_value_is_recorded_as_computed_and_used_as_locked(tiny):
    free, _ = run(tiny)
    lock = {("ffn_inp", 0): np.full((3, 4), 7, np.float32), ("k_rope", 1): np.zeros((3, 4), np.float32)}
    seen, _ = run(tiny, lock)
    assert (seen["ffn_inp", 0] == free["ffn_inp", 0]).all()
    assert np.allclose(seen["l_out", 0], 7 + seen["ffn_down", 0], atol=1e-6)  # float32 sums of numbers near 7
    expected = seen["q_rope", 1] + seen["v", 1]
    assert np.allclose(seen["kqv_out", 1], expected, atol=1e-5)  # likewise


def test_rows_of_another_order_are_turned_back_and_forth(tiny):
    order = np.array([0, 2, 1, 3])
    plain, _ = run(tiny)
    turned, _ = run(tiny, orders={"attn_q": order})
    assert (turned["q", 0] == plain["q", 0][:, order]).all()  # its own inverse
    same, _ = run(tiny, lock={("q", 0): turned["q", 0]}, orders={"attn_q": order})
    assert (same["result_output", -1] == plain["result_output", -1]).all()
