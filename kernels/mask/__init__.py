"""Grammar masks and temperature, in one pass over the logits.

`apply_mask(logits, table, row_ids, temperature)`
    logits [B, V] fp32 or bf16, contiguous, changed in place: what a row's mask forbids becomes -inf, the rest is
    divided by the row's temperature (in fp32, correctly rounded, then rounded to the logits' type). table int32 [R, W]
    with W >= ceil(V / 32), contiguous: bitmask rows, bit v % 32 of word v // 32 set where token v is allowed; bits from
    V on mean nothing. row_ids int32 [B]: the table row of each row of logits, -1 for none. temperature fp32 [B], 0 for
    rows that are not divided (greedy ones); None divides none. All on one device. A mask that allows nothing leaves
    -inf everywhere.
"""
