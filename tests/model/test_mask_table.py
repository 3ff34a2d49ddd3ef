"""Interned mask rows: found again, evicted in order, never wrong."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from stemma.backend.core import mask_words
from stemma.backend.executor.mask_table import MaskTable

VOCAB = 100
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def table_on(device: str, capacity: int | None = None, vocab: int = VOCAB) -> MaskTable:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    return MaskTable(vocab, torch.device(device), capacity)


def row_of(number: int, *, final: bool = True, vocab: int = VOCAB) -> np.ndarray:
    """A row that is different for every number."""
    row = np.random.default_rng(number).integers(-(1 << 31), 1 << 31, mask_words(vocab)).astype(np.int32)
    row.flags.writeable = not final
    return row


def rows_at(table: MaskTable, ids: np.ndarray) -> np.ndarray:
    return table.rows.cpu().numpy()[ids]


@pytest.mark.parametrize("device", DEVICES)
def test_a_row_is_uploaded_once(device: str) -> None:
    table = table_on(device)
    a, b = row_of(1), row_of(2)
    first = table.row_ids([a, b, a])
    assert first[0] == first[2] != first[1]
    assert table.row_ids([b, a]).tolist() == [first[1], first[0]]
    np.testing.assert_array_equal(rows_at(table, first), [a, b, a])
    stats = table.stats
    assert (stats.rows, stats.uploads, stats.by_identity, stats.by_content) == (5, 2, 3, 0)
    assert stats.bytes_uploaded == 2 * 4 * table.words + 4 * 5


def test_equal_rows_of_different_grammars_are_one() -> None:
    table = table_on("cpu")
    a, twin = row_of(1), row_of(1)
    assert table.row_ids([a]) == table.row_ids([twin]) == table.row_ids([twin])
    assert (table.stats.uploads, table.stats.by_content, table.stats.by_identity) == (1, 1, 1)


def test_a_row_that_can_be_written_to_is_looked_up_by_its_bytes() -> None:
    table = table_on("cpu")
    row = row_of(1, final=False)
    before = table.row_ids([row])
    row[0] ^= 1
    after = table.row_ids([row])
    assert before != after
    np.testing.assert_array_equal(rows_at(table, after)[0], row)
    assert table.stats.by_identity == 0


def test_an_address_that_is_used_again_is_not_taken_for_the_old_row() -> None:
    table = table_on("cpu")
    for number in range(200):  # each array dies, and the next often gets its address
        row = row_of(number)
        np.testing.assert_array_equal(rows_at(table, table.row_ids([row]))[0], row)
        del row
    gc.collect()
    assert not table._known


@pytest.mark.parametrize("device", DEVICES)
def test_the_least_recently_used_row_goes(device: str) -> None:
    table = table_on(device, capacity=4)
    rows = [row_of(i) for i in range(6)]
    for row in rows[:4]:
        table.row_ids([row])
    table.row_ids([rows[0]])  # 1 is the oldest now
    table.row_ids([rows[4]])
    assert (table.held, table.stats.evictions) == (4, 1)
    uploads = table.stats.uploads
    for kept in (0, 2, 3, 4):
        np.testing.assert_array_equal(rows_at(table, table.row_ids([rows[kept]]))[0], rows[kept])
    assert table.stats.uploads == uploads
    np.testing.assert_array_equal(rows_at(table, table.row_ids([rows[1]]))[0], rows[1])  # it comes back
    assert table.stats.uploads == uploads + 1


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_wider_than_the_table_makes_it_grow(device: str) -> None:
    table = table_on(device, capacity=4)
    rows = [row_of(i) for i in range(50)]
    ids = table.row_ids(rows)
    assert len(set(ids.tolist())) == 50
    np.testing.assert_array_equal(rows_at(table, ids), rows)
    assert table.stats.evictions == 0
    table.row_ids([row_of(100)])  # the step before may still be running
    np.testing.assert_array_equal(rows_at(table, ids), rows)


@pytest.mark.parametrize("device", DEVICES)
def test_random_use_never_mixes_rows_up(device: str) -> None:
    table = table_on(device, capacity=20)
    rng = np.random.default_rng(0)
    kept = [row_of(i, final=i % 3 > 0) for i in range(60)]
    for _ in range(300):
        chosen = [kept[i] if rng.random() < 0.7 else row_of(i) for i in rng.integers(0, 60, rng.integers(0, 9))]
        ids = table.row_ids(chosen)
        if chosen:
            np.testing.assert_array_equal(rows_at(table, ids), chosen)
        stats = table.stats
        assert stats.rows == stats.by_identity + stats.by_content + stats.uploads
        assert table.held <= 20
    assert table.stats.evictions > 50


@pytest.mark.parametrize("vocab", [1, 32, 70])
def test_a_row_allows_nothing_when_only_bits_beyond_the_vocabulary_are_set(vocab: int) -> None:
    table = table_on("cpu", vocab=vocab)
    nothing = np.zeros(mask_words(vocab), np.int32)
    beyond, last = nothing.copy(), nothing.copy()
    if vocab % 32:
        beyond[-1] = np.uint32(0xFFFF_FFFF << (vocab % 32) & 0xFFFF_FFFF).view(np.int32)
    last[(vocab - 1) >> 5] = np.uint32(1 << ((vocab - 1) & 31)).view(np.int32)
    assert table.allows_nothing(table.row_ids([nothing, beyond, last])).tolist() == [True, True, False]


def test_a_row_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="4 words"):
        table_on("cpu").row_ids([np.zeros(5, np.int32)])
