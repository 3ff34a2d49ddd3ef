"""A folder of text files in, one JSON line per file out. Every line is valid by construction.

Run it with `stemma run examples/extract_folder.py [FOLDER] > people.jsonl`; without a folder it makes one to show.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import stemma
from stemma import ProgramState, Regex, assistant, gen, user

SAMPLES = {
    "anna.txt": "Anna Keller is 29 years old and lives in Riverton. She works as a nurse.",
    "marco.txt": "My name is Marco Dahl. I am a teacher in Westhaven and I am 41.",
    "tomas.txt": "Tomas Brandvik, who is 52, moved to Lindhaven last spring. He is a baker.",
    "empty.txt": "",
}


@dataclass
class Person:
    name: Annotated[str, Regex(r"[A-Z][a-z]{1,15}( [A-Z][a-z]{1,15}){1,2}")]
    age: int
    city: Annotated[str, Regex(r"[A-Z][a-z]{1,20}")]
    job: Annotated[str, Regex(r"[a-z]{2,20}")]


@stemma.function
def extract(s: ProgramState, path: Path) -> None:
    text = path.read_text().strip()
    if not text:
        raise ValueError(f"{path.name} is empty")
    s += user(f"Extract name, age, city and job as JSON. {text}")
    s += assistant(gen("person", type=Person, max_tokens=80))


def main(folder: Path) -> None:
    paths = sorted(folder.glob("*.txt"))
    results = extract.run_batch([(path,) for path in paths], temperature=0, on_error="return")
    for path, result in zip(paths, results, strict=True):
        if isinstance(result, Exception):  # one bad file does not stop the others
            print(f"{path.name}: {result}", file=sys.stderr)
        else:
            print(json.dumps({"file": path.name, **asdict(result["person"])}))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as made:
            for name, text in SAMPLES.items():
                (Path(made) / name).write_text(text)
            main(Path(made))
