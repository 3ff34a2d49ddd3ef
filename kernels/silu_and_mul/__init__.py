"""Gated activation of the Llama MLP (SwiGLU, Shazeer 2020).

`silu_and_mul(gate_up, out=None) -> out`
    gate_up [T, 2 * I]: the gate in the first I columns, the up projection behind it. out [T, I] = silu(gate) * up.
"""
