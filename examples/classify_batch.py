"""Classify many tickets with a checkpoint: stop it at any time, run it again, and only the missing ones run.

Run it with `stemma run examples/classify_batch.py [CHECKPOINT.jsonl]`. Without a name it uses a temporary file, runs
half of the tickets, and then all of them.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

import stemma
from stemma import BatchRecord, ProgramState, assistant, select, user

CATEGORIES = ["billing", "technical", "shipping", "account"]
TICKETS = [
    "I was charged twice for my order.",
    "My parcel has not arrived yet.",
    "I forgot my password.",
    "The app crashes when I open it.",
    "My invoice has the wrong amount.",
    "The tracking number does not work.",
    "Please delete my account.",
    "The website shows an error.",
]


@stemma.function
def classify(s: ProgramState, ticket: str) -> None:
    s += user(f"Which category fits this message: {', '.join(CATEGORIES)}?\n{ticket}")
    s += assistant(select("category", choices=CATEGORIES))


def main(checkpoint: Path, tickets: list[str]) -> None:
    items = [{"ticket": ticket} for ticket in tickets]
    results = classify.run_batch(items, checkpoint=checkpoint, progress_bar=sys.stderr.isatty())
    kept = sum(isinstance(result, BatchRecord) for result in results)
    print(f"{len(results)} tickets, {kept} of them from {checkpoint.name}")
    if len(tickets) == len(TICKETS):
        for ticket, result in zip(tickets, results, strict=True):
            print(f"  {result['category']:<10} {ticket}")
        print("  " + ", ".join(f"{n} {name}" for name, n in Counter(r["category"] for r in results).most_common()))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]), TICKETS)
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder) / "tickets.jsonl", TICKETS[: len(TICKETS) // 2])
            main(Path(folder) / "tickets.jsonl", TICKETS)
