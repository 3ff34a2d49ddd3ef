"""Writes the keys and values of a step into the pool.

`store_kv(k, v, slots, k_pool, v_pool) -> None`
    k and v [T, Hkv, D] (the first dimension may be strided), slots int64 [T], pools [num_slots, Hkv, D].
    Slots of one step are distinct, except slot 0, which is padding and is never read.
"""
