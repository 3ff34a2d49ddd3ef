"""Small host arrays to the device, several in one copy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ALIGN = 16  # bytes; every array begins at a multiple of it


def to_device(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """Tensors of the arrays' types and shapes. On CPU they share the arrays' memory; on a GPU they are views of one
    buffer, filled by one copy in stream order, and the arrays may be changed as soon as this returns."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    starts, size = [], 0
    for array in arrays:
        starts.append(size)
        size += -(-array.nbytes // ALIGN) * ALIGN
    host = np.empty(size, np.uint8)
    for array, start in zip(arrays, starts, strict=True):
        host[start : start + array.nbytes] = np.ascontiguousarray(array).view(np.uint8).reshape(-1)
    # from memory that is not pinned the driver copies before it returns
    buffer = torch.from_numpy(host).to(device, non_blocking=True)
    types = [torch.from_numpy(np.empty(0, array.dtype)).dtype for array in arrays]
    return [
        buffer[start : start + array.nbytes].view(kind).view(array.shape)
        for array, start, kind in zip(arrays, starts, types, strict=True)
    ]
