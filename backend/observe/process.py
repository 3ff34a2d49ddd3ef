"""What a process holds: memory, threads, open files, children. From /proc; fewer figures where there is none."""

from __future__ import annotations

import os
import resource
import sys
import threading
from pathlib import Path


def figures(pid: int | None = None) -> dict[str, int]:
    """Of this process or another of the same user: pid, rss_bytes, threads, fds, children. Unknown ones are left out.

    Raises ProcessLookupError when there is no such process.
    """
    made = {"pid": os.getpid() if pid is None else pid}
    proc = Path("/proc") / str(made["pid"])
    if proc.exists():
        try:
            made["rss_bytes"] = int((proc / "statm").read_text().split()[1]) * resource.getpagesize()
            made["threads"] = len(list((proc / "task").iterdir()))
            made["fds"] = len(list((proc / "fd").iterdir()))
            made["children"] = len(children(made["pid"]))
        except FileNotFoundError:
            raise ProcessLookupError(f"process {pid} has ended") from None
    elif pid is None:
        unit = 1 if sys.platform == "darwin" else 1024
        made["rss_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
        made["threads"] = threading.active_count()
    else:
        raise ProcessLookupError(f"nothing is known of process {pid} on this system")
    return made


def children(pid: int) -> list[int]:
    """The processes that a process has started and that have not been waited for, also by its threads."""
    found: list[int] = []
    for task in (Path("/proc") / str(pid) / "task").iterdir():
        try:
            found += map(int, (task / "children").read_text().split())
        except FileNotFoundError:  # a thread that has just ended
            continue
    return found
