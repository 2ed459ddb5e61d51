"""BitNet b1.58 inference: ternary weights, int8 activations, the same bits on every thread count."""
