"""Rows of the side tables of the sample that the tests of the reports look at; see `reports_sample.py`."""

from __future__ import annotations

import random


def operation_rows(lanes, taps, n_layer):
    """Errors of every operation, beyond the limit from where a lane was located on."""
    random.seed(7)
    rows = []
    for item in lanes:
        step = item.rung("operations")
        if step.outcome not in ("pass", "fail"):
            continue
        absent = {"q_rope", "k_rope"} if "recorded" in item.name else set()
        keys = [
            ("embd", -1),
            *((t, il) for il in range(n_layer) for t in taps),
            ("result_norm", -1),
            ("result_output", -1),
        ]
        for case in ("story", "question"):
            for tap, layer in keys:
                if tap in absent:
                    continue
                bad = item.located is not None and tap == item.located.tap and layer >= item.located.layer
                exact = tap in ("embd", "attn_norm", "ffn_inp", "l_out") or ("oracle" in item.name and tap in "qkv")
                ratio = 0.0 if exact else 10 ** random.uniform(-8.2, -6.75)
                ratio = 10 ** random.uniform(-1.5, -0.7) if bad else ratio
                rows.append(
                    {
                        "lane": item.name,
                        "case": case,
                        "tap": tap,
                        "layer": layer,
                        "compared": 2560,
                        "max_abs_err": ratio * 4,
                        "max_abs_ref": 4.0,
                        "ratio": ratio,
                        "limit": 1e-6,
                        "outcome": "fail" if ratio > 1e-6 else "pass",
                        "worst_token": 3,
                        "worst_index": 17,
                    }
                )
    return rows


def profile_rows(operations):
    """Errors by position and histograms of the rows of operations."""
    return [
        {name: row[name] for name in ("lane", "case", "tap", "layer")}
        | {
            "errors": [float(f"{row['ratio'] * share:.3g}") for share in (0.1, 0.5, 0.0, 1.0, 0.2)],
            "ours": [9, *[160] * 7, 311, *[160] * 7, 0],
            "theirs": [8, *[150] * 7, 451, *[150] * 7, 1],
        }
        for row in operations
    ]


def token_rows(lanes):
    """A prompt of five and three more tokens in each lane that reached the greedy rung."""
    rows = []
    for item in lanes:
        reached = item.rung("greedy").outcome == "pass"
        for position in range(8 if reached else 5):
            token, ours = 40 + position, 40 + position + (position == 6 and bool(item.rung("greedy").near_ties))
            rows.append(
                {
                    "lane": item.name,
                    "case": "story",
                    "position": position,
                    "id": token,
                    "text": f" word{token}",
                    "ours": ours if position >= 5 else None,
                    "ours_text": f" word{ours}" if position >= 5 else "",
                }
            )
    return rows


def position_rows(lanes):
    """Drift of the logits by position, with near-ties and positions that are equal to the bit."""
    random.seed(11)
    rows = []
    for item in lanes:
        if item.rung("logits").outcome not in ("pass", "fail"):
            continue
        for case, prefill, decode in (("story", 14, 18), ("question", 9, 16)):
            for position in range(prefill + decode):
                value = 10 ** random.gauss(-6.9, 0.25)
                if "TQ2_0" in item.name and position % 9 == 0:
                    value = 10 ** random.uniform(-3, -2)
                if "oracle" in item.name and position < 3:
                    value = 0.0
                tie = "silu · llama.cpp TQ2_0" in item.name and case == "story" and position in (9, 16)
                rows.append(
                    {
                        "lane": item.name,
                        "case": case,
                        "phase": "prefill" if position < prefill else "decode",
                        "position": position,
                        "rel_l2": value,
                        "max_abs": value * 10,
                        "kl": value**2,
                        "top1_equal": not tie,
                        "margin": 0.004 if tie else 0.7,
                        "floor": 0.0 if position == 5 else 10 ** random.gauss(-6.6, 0.2),
                    }
                )
    return rows
