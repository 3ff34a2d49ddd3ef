"""Rotary position embedding (Su et al. 2021), in the half-split layout of Hugging Face checkpoints.

`apply_rope(q, k, cos, sin) -> None`
    q [T, Hq, D] and k [T, Hkv, D] are rotated in place; their last two dimensions are contiguous, the first may be
    strided. cos and sin [T, D / 2] in fp32, one row for each token's absolute position. Component d < D/2 pairs with
    d + D/2: (a, b) -> (a cos - b sin, b cos + a sin).
"""
