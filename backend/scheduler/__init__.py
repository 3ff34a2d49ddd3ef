"""Which branch runs next, and what becomes of its tokens. Is given a runner; imports no torch."""
