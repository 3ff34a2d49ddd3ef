"""Rotates a step's queries and keys, and writes keys and values into the pool.

`rope_store_kv(q, k, v, cos, sin, slots, k_pool, v_pool) -> None`
    `apply_rope` on q and k, then `store_kv` of k and v: shapes as in those two packages. q is rotated in place; what k
    holds afterwards is not specified. slots may be int32 or int64.
"""
