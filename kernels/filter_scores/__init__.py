"""Top-k, top-p and min-p.

`filter_scores(scores, top_k, top_p, min_p) -> None`
    scores [B, V] fp32, contiguous: logits after temperature, -inf for what is forbidden already. Changed in place: what
    the filters drop becomes -inf. top_k int32 [B] (V or more: off), top_p fp32 [B] (1 or more: off), min_p fp32 [B]
    (0: off). Tokens are ordered by score, equal ones by id, and a prefix of that order is kept: the first top_k; of
    those, each while the tokens before it have less than top_p of the probability of the top_k; and none whose
    probability is below min_p times the largest. The first is always kept.
"""
