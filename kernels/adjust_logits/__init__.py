"""Bias and penalties of single tokens, before the mask.

`adjust_logits(logits, rows, ids, add, divide, minus) -> None`
    logits [B, V] fp32, contiguous, changed in place. The others are [N], on the same device: rows and ids int32, add,
    divide and minus fp32. Entry e changes x = logits[rows[e], ids[e]]: x += add, then x / divide where x > 0 and
    x * divide elsewhere (the repetition penalty of Keskar et al. 2019), then x -= minus. No two entries name the same
    element.
"""
