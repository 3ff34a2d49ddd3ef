"""The random draw, independent of batch mates and of the shape of the step.

`draw(scores, seeds, positions) -> ids`
    scores fp32 [B, V]: logits after temperature, with -inf for what is filtered out. seeds int64 [B], positions
    int64 [B] (index of the token being drawn). ids int64 [B]: a sample of softmax(scores) for each row by the Gumbel
    trick, argmax_v(scores[v] - log E(seed, position, v)), where E is a standard exponential variable made from a
    counter-based hash (SplitMix64's finaliser, Steele et al. 2014). A row's result depends on nothing but its own
    scores, seed and position. Ties go to the lowest id.
"""
