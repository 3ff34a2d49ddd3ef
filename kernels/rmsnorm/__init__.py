"""Root mean square normalisation (Zhang & Sennrich 2019; the arithmetic of Hugging Face `LlamaRMSNorm`).

`rms_norm(x, weight, eps, out=None) -> out`
    x [..., G, D] or [T, D]: the last dimension is normalised in fp32, cast back to x's dtype, then scaled by
    weight [D]. Only the first dimension of x may be strided. `out` has x's shape and may be x itself.
`add_rms_norm(x, residual, weight, eps, out=None) -> out`
    residual [T, D] += x [T, D], in place; the norm of the new residual is returned. Both are contiguous.
"""
