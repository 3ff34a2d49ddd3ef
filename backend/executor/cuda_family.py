"""Family attention in the GPU's runner: steps in which every row decodes one token, and rows share enough of what they
attend.

The plan's tree (`Plan.segments`) tells what is shared, so nothing is compared. What follows from it is kept until the
rows change. The slots of all pieces lie behind the head of the staging buffer, each row's own with room to grow: they
are sent when the rows change (or have outgrown the room), and each step's new slot is added by the kernel that lays the
line. So a steady step sends a few numbers for each row.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from stemma.backend.core import Int32, Plan, Segment
from stemma.backend.executor.staging import aligned
from stemma.kernels.attention.family import FamilyTensors, grid_shares, make_workspace, per_tile, ratio_pad
from stemma.kernels.attention.family_plan import FamilyPlan, Line, common_of_segments, line_up, plan_families

ROOM = 128  # tokens that a row may grow by before its slots are sent again
WORTH = 7 / 8  # of the keys of all rows: if more must be read, rows are attended one by one
MOST_KEYS = 1 << 22  # of a line; longer ones are attended row by row
STEADY = ("group_first", "group_count", "row_group", "piece_at", "piece_own", "piece_who")
MOVING = ("piece_start", "group_start", "share_group", "length")


class Section:
    """Where the numbers of a graph's step lie, in words from the section's beginning."""

    def __init__(self, size: int, shares: int) -> None:
        """size: rows of the graph."""
        numbers = (size, size, size, 2 * size, 2 * size, 2 * size, 2 * size + 1, size + 1, shares + 1, 1)
        self.size, self.shares = size, shares
        self.places: dict[str, slice] = {}
        at = 0
        for name, words in zip(STEADY + MOVING, numbers, strict=True):
            self.places[name] = slice(at, at + words)
            at += aligned(words)
        self.words = at

    def views(self, section: Tensor) -> dict[str, Tensor]:
        return {name: section[place] for name, place in self.places.items()}


class Families:
    """The host's side: decides step by step, and keeps what does not change."""

    def __init__(
        self, group: int, kv_heads: int, dim: int, rows: int, keys: int, processors: int, device: torch.device
    ):
        """group: query heads of a KV head. rows: most rows of a step. keys: most that they may attend together.
        processors: multiprocessors of the GPU."""
        self.narrow = per_tile(group)
        self.keys = min(keys, MOST_KEYS)
        self._kv_heads, self._processors = kv_heads, processors
        shares = {widest: self.shares(widest) for widest in self.classes}
        lanes = {widest: max(16, widest * ratio_pad(group)) for widest in self.classes}
        needed = [((shares[w] + rows) * lanes[w], shares[w] + rows, lanes[w]) for w in self.classes]
        _, parts, lanes_most = max(needed)
        self.workspace = make_workspace(parts, kv_heads, lanes_most, dim, device)
        self.line_slot, self.line_who = torch.empty(2, aligned(self.keys), dtype=torch.int32, device=device)
        self._segments: Sequence[Segment] = ()
        self._rows: Int32 = np.empty(0, np.int32)
        self._next: Int32 = self._rows  # the starts of the step that only adds a token to the one before
        self._plan: FamilyPlan | None = None
        self._section: Section | None = None
        self._block: Int32 = self._rows
        self._line: Line | None = None
        self._room = 0  # steps until the slots must be sent again; 0: they are not there
        self.widest = 0  # the class of the plan: rows that its wide tile holds
        self.words = 0  # of slots that this step must send

    @property
    def classes(self) -> tuple[int, ...]:
        """Rows of the widest tile that kernels are compiled for."""
        return self.narrow, 2 * self.narrow, 4 * self.narrow

    def shares(self, widest: int) -> int:
        return grid_shares(widest, self.narrow, self._kv_heads, self._processors)

    def section(self, size: int, widest: int) -> Section:
        return Section(size, self.shares(widest))

    def forget(self) -> None:
        """What lay behind the head of the staging buffer is overwritten."""
        self._room = 0

    def take(self, plan: Plan, size: int) -> Section | None:
        """Where the step's numbers go if it is worth it, in a graph of `size` rows; None if rows are better attended
        one by one. After it `widest` and `words` are the step's."""
        if not plan.segments or len(plan.rows) != len(plan.ids):
            return None
        if plan.segments is not self._segments or not np.array_equal(plan.rows, self._rows):
            self._replan(plan)
        if self._plan is None:
            return None
        if self._section is None or self._section.size != size:
            self._arrange(size)
        assert self._section is not None
        self._line = line_up(self._plan, plan.start + 1, self._section.shares)
        if not self._room or not np.array_equal(plan.start, self._next):
            self.words = self._place(plan)
            self._room = ROOM
        else:
            self.words = 0
        if max(self._line.total, self.words) > self.keys:
            self._room = 0
            return None
        return self._section

    def fill(self, plan: Plan, numbers: Int32, slots: Int32) -> None:
        """Writes the step's numbers, and the slots [words] if there are any to send."""
        line, block, section, made = self._line, self._block, self._section, self._plan
        assert line is not None and section is not None and made is not None
        places, groups = section.places, len(line.group_start)
        starts = block[places["piece_start"]]
        starts[: len(line.piece_start)] = line.piece_start
        starts[len(line.piece_start) :] = line.total
        block[places["group_start"]][:groups] = line.group_start
        block[places["share_group"]] = line.share_group
        block[places["length"]] = line.length
        numbers[:] = block
        if self.words:
            self._gather(plan, slots)
        self._next = plan.start + 1
        self._room -= 1

    def tensors(
        self, section: Section, widest: int, numbers: Tensor, out_slots: Tensor, store: Tensor
    ) -> FamilyTensors:
        """What the kernels of a graph read. numbers: the section on the device; store: the slots behind the head."""
        return FamilyTensors(
            shares=section.shares,
            widest=widest,
            store=store,
            out_slots=out_slots,
            line_slot=self.line_slot,
            line_who=self.line_who,
            workspace=self.workspace,
            **section.views(numbers),
        )

    # -- when rows change ------------------------------------------------------------------------------------------

    def _replan(self, plan: Plan) -> None:
        self._segments, self._rows = plan.segments, plan.rows.copy()
        self._plan, self._section, self._room = None, None, 0
        rows = len(plan.rows)
        all_keys = int(plan.start.sum(dtype=np.int64)) + rows
        saved = sum((s.count - 1) * (s.end - s.begin) for s in plan.segments)
        if all_keys - saved > WORTH * all_keys:
            return
        common = common_of_segments([(s.first, s.count, s.end) for s in plan.segments], rows)
        made = plan_families(np.arange(rows, dtype=np.int32), common, self.narrow, 4 * self.narrow)
        ends = np.where(made.piece_to < 0, plan.start[made.piece_leader] + 1, made.piece_to)
        if int((ends - made.piece_from).sum(dtype=np.int64)) <= WORTH * all_keys:
            self._plan = made
            self.widest = next(w for w in self.classes if w >= made.widest)

    def _arrange(self, size: int) -> None:
        """What of the section stays from step to step."""
        made = self._plan
        assert made is not None
        section = self._section = self.section(size, self.widest)
        self._room = 0
        self._block = np.zeros(section.words, np.int32)
        for name, values, rest in (
            ("group_first", made.group_first, 0),
            ("group_count", made.group_count, 0),
            ("row_group", made.row_group, -1),
            ("piece_own", np.where(made.piece_to < 0, made.piece_leader, -1), -1),
            ("piece_who", made.piece_who, 0),
        ):
            place = self._block[section.places[name]]
            place[: len(values)] = values
            place[len(values) :] = rest

    def _place(self, plan: Plan) -> int:
        """Finds places for the pieces' slots; how many words they take."""
        made, section = self._plan, self._section
        assert made is not None and section is not None
        own = made.piece_to < 0
        lengths = np.where(own, plan.start[made.piece_leader] + 1 + ROOM, made.piece_to) - made.piece_from
        ends = np.cumsum(lengths, dtype=np.int64)
        if ends[-1] <= self.keys:
            self._block[section.places["piece_at"]][: len(ends)] = ends - lengths
        return int(ends[-1])

    def _gather(self, plan: Plan, out: Int32) -> None:
        made, section = self._plan, self._section
        assert made is not None and section is not None
        table = plan.slot_table
        lengths = plan.start[made.piece_leader] + 1
        at = self._block[section.places["piece_at"]].tolist()
        rows = plan.rows[made.piece_leader].tolist()
        ends = np.where(made.piece_to < 0, lengths, made.piece_to).tolist()
        for row, begin, end, place in zip(rows, made.piece_from.tolist(), ends, at, strict=False):
            out[place : place + end - begin] = table[row, begin:end]
