"""Rows of the side tables by themselves: could an operation have that shape, and two rows of logits such distances?"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from receipts.check_files import by_lane
from receipts.rule import Finding, View, rule
from receipts.subject import HyperParameters
from receipts.tables import Row

#: Sums over a vocabulary in double precision: what may be left of an equality that holds for real numbers.
ROUNDING = 1e-9


@rule("rows.shapes", "An operation has the width of its tap in the model, and as many tokens as the case's others.")
def rows_shapes(view: View) -> Iterator[Finding]:
    """Or one: engines drop the rows of a prompt that nobody asked for. The worst element lies inside."""
    models = view.models()
    for i, lane in enumerate(view.receipt.lanes):
        tokens: dict[str, int] = defaultdict(int)
        shaped: list[tuple[Row, int, int]] = []
        for row in by_lane(view, "operations").get(lane.name, []):
            if lane.model not in models or row["outcome"] not in ("pass", "fail") or row["compared"] <= 0:
                continue
            width = _width(models[lane.model].hyper_parameters, row["tap"])
            n, rest = divmod(row["compared"], max(width, 1))
            if rest:
                yield (
                    f"lanes[{i}]",
                    f"{row['tap']} of layer {row['layer']} has {row['compared']} values of {width} a row",
                )
            shaped.append((row, n, width))
            tokens[row["case"]] = max(n, tokens[row["case"]])
        for row, n, width in shaped:
            path = f"lanes[{i}]"
            if n not in (1, tokens[row["case"]]):
                yield path, f"{row['tap']} of layer {row['layer']} has {n} tokens, others {tokens[row['case']]}"
            if (row["worst_token"] or 0) >= max(n, 1) or (row["worst_index"] or 0) >= width:
                yield path, f"the worst element of {row['tap']} of layer {row['layer']} lies outside"


def _width(shape: HyperParameters, tap: str) -> int:
    n_q, n_kv = shape.n_head * shape.head_dim, shape.n_head_kv * shape.head_dim
    if tap in ("q", "q_rope", "kqv_out", "attn_sub_norm"):
        return n_q
    if tap in ("k", "v", "k_rope"):
        return n_kv
    if tap in ("ffn_gate", "ffn_up", "ffn_act", "ffn_sub_norm"):
        return shape.n_ff
    return shape.n_vocab if tap == "result_output" else shape.n_embd


@rule("rows.distances", "What is said of two rows of logits can all be true, and a position has one floor of noise.")
def rows_distances(view: View) -> Iterator[Finding]:
    """Equal logits differ in nothing; others change log-probabilities, and a margin, by twice their difference."""
    for i, lane in enumerate(view.receipt.lanes):
        floors: dict[tuple[str, int], float | None] = {}
        for row in by_lane(view, "positions").get(lane.name, []):
            place = f"{row['phase']} {row['position']} of {row['case']!r:.60}"
            if floors.setdefault((row["case"], row["position"]), row["floor"]) != row["floor"]:
                yield f"lanes[{i}]", f"{place}: the noise was {floors[row['case'], row['position']]} before"
            if None in (row["max_abs"], row["rel_l2"], row["kl"], row["margin"]):
                continue  # what is not finite has failed already
            apart = 2 * row["max_abs"] * (1 + ROUNDING) + ROUNDING
            if (row["max_abs"] == 0) != (row["rel_l2"] == 0):
                yield f"lanes[{i}]", f"{place}: equal by one measure, and not by another"
            if not 0 <= row["kl"] <= apart:
                yield f"lanes[{i}]", f"{place}: a divergence of {row['kl']:g} from differences up to {row['max_abs']:g}"
            if not row["top1_equal"] and row["margin"] > apart:
                yield f"lanes[{i}]", f"{place}: other choices over a margin of {row['margin']:g}"
