"""The likeliest token of each row.

`argmax(scores) -> ids`
    scores [B, V] fp32 or bf16, contiguous; ids int64 [B]: the index of the largest, the lowest one among equals. A row
    of -inf gives 0; a row with NaN gives some index in [0, V).
"""
