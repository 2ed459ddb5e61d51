"""How far two honest float32 engines may be apart on the same inputs, where the data themselves amplify rounding.

An operation on locked inputs is judged by max|error| / max|reference| ≤ 1e-6. For most operations no data can make
honest engines miss that: a norm sums squares, which cannot cancel, over a mean that epsilon keeps from zero; a rotation
multiplies by numbers up to 1 whose angles are numerics, declared to the last bit; residual sums, embeddings and scaled
integer sums are rounded once; the activations are smooth functions of an exact argument. Two kinds can be ill
conditioned, and only they are treated here: attention, whose exponentials turn the absolute error of a score into the
relative error of a weight, and products in float32 whose terms cancel.

**Model.** With u = 2⁻²⁴, rounding errors are independent, each at most u times the value that is rounded, and spread
evenly: variance u²/3 · value². A dot product of n terms keeps its partial sums in L ≥ 4 lanes (a vector register is no
narrower), each n/L long. A partial sum after m terms is about m/n of the result and a random walk of m steps of the
size of a term, so that the squares of all partial sums add up to n/L · (‖terms‖² + result²) / 2, and

    var(dot) = u² · n / (6 L) · (‖x ∘ w‖² + (x · w)²).

**Attention.** Let s_j = q · k_j / √d, m = max s, p = softmax(s), o = Σ p_j v_j. The score that is exponentiated has the
errors of its dot product, of its scaling and of the subtraction of m; the exponential adds two units in the last place:

    var(s_j) = u² · [ d / (6 L) · (‖q ∘ k_j‖² / d + s_j²) + (s_j² + (s_j − m)² + 16) / 3 ].

The derivative of o by s_j is p_j (v_j − o): softmax is invariant to what all scores share, and a key that takes all the
weight takes it whatever its score. With the sum over the S keys as a dot product,

    var(o) = Σ_j p_j² · var(s_j) · (v_j − o)² + u² · S / (6 L) · (Σ_j p_j² v_j² + o²).

So noise grows with the scores, and only where another key still competes. Two engines err independently (√2), and five
standard deviations are allowed, which chance exceeds in one of 2 · 10⁶ values. Measured against it on five models, two
of them trained with scores up to 50, the largest difference of honest engines is 0.4 to 0.6 of the bound.

Where probabilities are stored as float16, one that lies between two roundings may fall to either side: there the
spacing of float16 is added.

Sources: N. J. Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., SIAM 2002, ch. 3 (dot products, blocked
sums); N. J. Higham and T. Mary, A new approach to probabilistic rounding error analysis, SIAM J. Sci. Comput. 41
(2019) (why √n, not n); P. Blanchard, D. J. Higham and N. J. Higham, Accurately computing the log-sum-exp and softmax
functions, IMA J. Numer. Anal. 41 (2021) (errors of scores become relative errors of the weights).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from math import sqrt

import numpy as np

from crossval import envelope
from crossval.catalogue import PROJECTIONS
from crossval.metrics import Difference, Float32, Float64, difference
from reference.contract import PROJECTIONS as TENSORS
from reference.oracle import Oracle
from reference.rounding import INT8_TOKEN, f16
from reference.runner import TapKey

_U = 2.0**-24
#: Partial sums that every engine keeps at least.
_LANES = 4


def judged(
    ours: Float32,
    theirs: Float32,
    noise: Callable[[], float],
    largest: envelope.Envelope = envelope.LARGEST_LOCKED,
) -> Difference:
    """A difference whose `max_abs_ref` is what the locked envelope measures it against.

    That is the largest value of the reference, or, where the data amplify rounding beyond the envelope, as much as
    makes the envelope's limit equal to the noise; never so much that rounding to float16 would pass.

    Args:
        ours: Values of an operation.
        theirs: The other side's.
        noise: Told only where it matters: the largest honest difference, absolute.
        largest: What no noise excuses.
    """
    found = difference(ours, theirs)
    limit, most = envelope.LOCKED_OPERATION.limit, largest.limit
    if found.ratio <= limit or not found.max_abs_err <= most * found.max_abs_ref:
        return found
    return replace(found, max_abs_ref=max(found.max_abs_ref, min(noise(), most * found.max_abs_ref) / limit))


def noise(oracle: Oracle, key: TapKey, inputs: Sequence[Float64], borders: Sequence[int]) -> float:
    """The largest difference that two honest float32 engines may show in an operation; 0 where 1e-6 covers it always.

    Args:
        oracle: What is computed, in the engines' numerics.
        key: The operation.
        inputs: What it is fed, [T, width] each; keys and values as they are cached.
        borders: Where batches begin, and the number of tokens.
    """
    if not all(np.isfinite(x).all() for x in inputs):
        return 0.0
    with np.errstate(all="ignore"):
        if key[0] == "kqv_out":
            q, k, v = inputs
            found = _attention(oracle, q, k, v, borders)
        elif key[0] in PROJECTIONS or key[0] == "result_output":
            found = _product(oracle, key, inputs[0])
        else:
            return 0.0
    return found if np.isfinite(found) else 0.0


def _largest(variance: Float64) -> float:
    return envelope.DEVIATIONS * sqrt(2.0 * max(float(variance.max(initial=0.0)), 0.0))


def _attention(oracle: Oracle, q: Float64, k: Float64, v: Float64, borders: Sequence[int]) -> float:
    d, n_key = oracle.hyper.head_dim, len(k)
    if oracle.numerics["query"] == "f16":
        q = f16(q).astype(np.float64)
    s = oracle.attention_scores(q, k, 0)  # [H, T, S], −∞ where masked
    seen, values = np.isfinite(s), oracle.per_query_head(v)  # [H, S, d]
    factor = oracle.semantics.attention_scale_factor
    queries = q.reshape(len(q), oracle.hyper.n_head, -1).transpose(1, 0, 2)
    terms = (queries**2) @ (oracle.per_query_head(k) ** 2).transpose(0, 2, 1) * factor**2 / d
    highest = s.max(axis=-1, keepdims=True)
    p = np.exp(s - highest)
    p /= p.sum(axis=-1, keepdims=True)
    s, below = np.where(seen, s, 0.0), np.where(seen, s - highest, 0.0)
    score = d / (6 * _LANES) * (terms + s**2) + (s**2 + below**2 + 16.0) / 3.0  # in u²
    weight = p**2 * score
    o = p @ values
    spread = weight @ values**2 - 2.0 * o * (weight @ values) + o**2 * weight.sum(axis=-1, keepdims=True)
    summed = n_key / (6 * _LANES) * (p**2 @ values**2 + o**2)
    found = _largest(_U**2 * (spread + summed))
    rounded = _singles(oracle.numerics["probs"], borders)
    if not rounded.any():
        return found
    blurred = envelope.DEVIATIONS * _U * p * np.sqrt(score + weight.sum(axis=-1, keepdims=True))
    either = np.abs(f16(p + blurred).astype(np.float64) - f16(p - blurred)) * rounded[:, None]
    return found + float((either @ np.abs(values)).max(initial=0.0))


def _singles(kind: str, borders: Sequence[int]) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Tokens whose probabilities are rounded to float16."""
    sizes = [stop - start for start, stop in pairwise(borders)]
    return np.repeat([kind == "f16" or (kind == "f16_decode" and size == 1) for size in sizes], sizes)


def _product(oracle: Oracle, key: TapKey, x: Float64) -> float:
    """A product in float32. How its input is rounded is declared, and costs nothing: both round the same values."""
    head = key[0] == "result_output"
    w = oracle.matrix(oracle.hyper.head if head else f"blk.{key[1]}.{TENSORS[key[0]]}.weight")
    if not head and w.ternary and oracle.numerics["activation"] in INT8_TOKEN:
        return 0.0  # integers
    terms = w.product_of_squares(x)
    if w.block_scale is not None:
        terms *= float(np.abs(w.block_scale).max()) ** 2
    largest = _largest(_U**2 * x.shape[1] / (6 * _LANES) * (terms + w.product(x) ** 2))
    scaled = largest if head else abs(float(w.scaled(np.array([[largest]], np.float32), oracle.semantics)[0, 0]))
    return scaled * (oracle.semantics.logit_scale if head else 1.0)
