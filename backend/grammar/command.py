"""`stemma grammar check`: run a file of JSON schemas through an engine, and say what it gets right and how fast."""

from __future__ import annotations

import argparse
import base64
import binascii
import gc
import json
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path

from stemma.backend.grammar.adapters import BACKENDS, Backend, backend_named
from stemma.backend.grammar.adapters.process import Handler, Lost, Worker
from stemma.backend.grammar.base import Vocabulary
from stemma.backend.grammar.compiler import warm_up
from stemma.backend.grammar.maskbench import Case, Outcome, figures, parse_cases, run_case
from stemma.backend.grammar.tekken import tekken_vocabulary
from stemma.backend.text.tokenizer import Tokenizer, read_json
from stemma.lang.errors import RequestError, StemmaError
from stemma.lang.params import Constraint

TIME_LIMIT = 20.0  # seconds for a schema to compile, and again for its instances


@dataclass(frozen=True)
class Split:
    """How a tiktoken vocabulary cuts a text before merging, the id of <|endoftext|>, and its ids with special tokens.

    None: the first free id is EOS, and there are no further special tokens.
    """

    pattern: str
    eos: int | None = None
    ids: int = 0


# As published with the vocabularies: openai/tiktoken (MIT), QwenLM/Qwen (Apache-2.0).
_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LOWER, _UPPER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}", r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
SPLITS = {
    "o200k": Split(
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CONTRACTION}?"
        rf"|[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CONTRACTION}?"
        rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}",
        199_999,
        200_019,
    ),
    "cl100k": Split(
        rf"{_CONTRACTION}|{_LETTERS}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}", 100_257, 100_277
    ),
    "qwen": Split(rf"{_CONTRACTION}|{_LETTERS}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}", 151_643, 151_851),
}


def load_vocabulary(path: str | Path, pattern: str | None = None) -> Vocabulary:
    """From a Hugging Face directory, a .tiktoken file (lines of base64 token and rank), or Mistral's tekken.json (also
    a directory that holds it and no tokenizer.json).

    `pattern` is a name of SPLITS or a regular expression, for a .tiktoken file whose name does not tell which it is.
    Raises RequestError naming the file and what is wrong with it.
    """
    path = Path(path)
    if path.suffix == ".json" or (path.is_dir() and not (path / "tokenizer.json").is_file()):
        tekken = path if path.suffix == ".json" else path / "tekken.json"
        if tekken.is_file():
            return tekken_vocabulary(tekken, read_json(tekken))
    if path.is_dir():
        tokenizer = Tokenizer.load(path)
        config = path / "config.json"
        size = read_json(config).get("vocab_size") if config.is_file() else None
        return tokenizer.vocabulary(max(size, tokenizer.vocab_size) if isinstance(size, int) else tokenizer.vocab_size)
    if not path.is_file():
        raise RequestError(f"no tokenizer at {path}: no such directory or file", param="tokenizer")
    return _tiktoken_vocabulary(path, _split_of(path, pattern))


def _split_of(path: Path, pattern: str | None) -> Split:
    name = next((name for name in SPLITS if name in path.name.lower()), None)
    if pattern is not None:
        known = SPLITS.get(pattern) or (SPLITS[name] if name else Split(pattern))
        return known if pattern in SPLITS else replace(known, pattern=pattern)
    if name is None:
        raise RequestError(
            f"the name of {path} does not tell how it splits text; give --pattern with one of {', '.join(SPLITS)}, "
            "or a regular expression",
            param="pattern",
        )
    return SPLITS[name]


def _tiktoken_vocabulary(path: Path, split: Split) -> Vocabulary:
    import tiktoken

    ranks = dict(_read_ranks(path))
    eos = split.eos if split.eos is not None and split.eos not in ranks.values() else max(ranks.values()) + 1
    try:
        encoding = tiktoken.Encoding(
            path.stem, pat_str=split.pattern, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": eos}
        )
    except ValueError as error:
        raise RequestError(f"{path} cannot be read with {split.pattern!r}: {error}", param="pattern") from None
    token_bytes: list[bytes | None] = [None] * (max(eos, *ranks.values()) + 1)
    for text, i in ranks.items():
        token_bytes[i] = text
    size = -(-max(len(token_bytes), split.ids) // 64) * 64  # logits are padded so
    return Vocabulary(token_bytes, size, frozenset([eos]), encoding.encode_ordinary)


def _read_ranks(path: Path) -> Iterator[tuple[bytes, int]]:
    empty = True
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            text, rank = line.split()
            yield base64.b64decode(text, validate=True), int(rank)
        except (ValueError, binascii.Error):
            raise RequestError(
                f"{path}:{number} is not a base64 token and its rank: {line[:80]!r}", param="tokenizer"
            ) from None
        empty = False
    if empty:
        raise RequestError(f"{path} holds no tokens", param="tokenizer")


def ready(backend: str, tokenizer: str, pattern: str | None) -> tuple[Backend, Vocabulary]:
    """An engine with its tables for the vocabulary built, so that no schema pays for them."""
    vocab, engine = load_vocabulary(tokenizer, pattern), backend_named(backend, narrow=False)
    if backend == "native":
        warm_up()
    engine.compile(Constraint("regex", "[a-z]+"), vocab).matcher().mask()
    gc.collect()
    gc.freeze()  # as an engine does: what lives now is not looked at in every collection
    return engine, vocab


def checker(backend: str, tokenizer: str, pattern: str | None) -> Handler:
    """The worker's handler: takes cases."""
    engine, vocab = ready(backend, tokenizer, pattern)
    return lambda case: run_case(case, engine.compile, vocab)


def check(cases: Iterable[Case], worker: Worker) -> Iterator[Outcome]:
    """The outcome of each case. One that hangs or crashes is `unfinished`, and does not disturb the next."""
    for case in cases:
        outcome = Outcome(case.name)
        try:
            worker.start()
            try:
                for answer in worker.run(case):
                    outcome = answer
            except Lost as lost:
                outcome.unfinished = str(lost)
            except (RuntimeError, StemmaError) as error:  # of the engine: the case fails, the run goes on
                outcome.unfinished = str(error)
        except Lost as lost:
            raise RequestError(f"the engine does not start: it {lost}", param="backend") from None
        yield outcome


def main(argv: list[str] | None = None) -> int:
    """`stemma grammar check FILE`: prints one JSON object. Status 0 whatever the figures are."""
    args = _parser().parse_args(argv)
    if not args.file.is_file():
        raise RequestError(f"no such file: {args.file}", param="file")
    setup = partial(checker, args.backend, args.tokenizer, args.pattern)
    outcomes: list[Outcome] = []
    with args.file.open(encoding="utf-8") as lines, Worker(setup, limit=args.time_limit) as worker:
        for outcome in check(islice(parse_cases(lines), args.limit), worker):
            outcomes.append(outcome)
            if args.progress:
                ms = "-" if outcome.compile_ms is None else f"{outcome.compile_ms:.1f} ms"
                print(f"{len(outcomes):>5}  {ms:>12}  {outcome.name}  {outcome.why or 'passed'}", file=sys.stderr)
    print(json.dumps({"backend": args.backend, **figures(outcomes)}, indent=2, ensure_ascii=False))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="stemma grammar",
        description="Tools for constrained decoding.",
        epilog="example: stemma grammar check schemas.jsonl --tokenizer o200k_base.tiktoken",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    checks = commands.add_parser(
        "check",
        help="run JSON schemas with valid and invalid instances through an engine",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=(
            "Runs each schema of FILE by the rules of MaskBench, and prints one JSON object.\n\n"
            'A line of FILE is {"name": …, "schema": …, "tests": [{"instance": …, "valid": true}, …]}.\n'
            "A schema passes when it compiles, when every valid instance is allowed token by token\n"
            "(json.dumps, the tokenizer's canonical tokens, EOS legal at the end), and when every\n"
            "invalid instance is rejected somewhere. An engine that refuses a schema says why."
        ),
        epilog=(
            "figures:\n"
            "  refused        schemas that the engine does not compile, with its words in failures\n"
            "  unfinished     schemas that hit the time limit, or crashed the engine\n"
            "  false_accepts  invalid instances that were accepted; false_rejects: valid ones that were not\n"
            "  compile_ms     of the schemas that compiled; mask_us: of every mask, compiling not included\n"
            "  forced_share   of the tokens of valid instances as compact JSON, how many need no choice\n\n"
            "examples:\n"
            "  stemma grammar check schemas.jsonl --tokenizer o200k_base.tiktoken --progress\n"
            "  stemma grammar check schemas.jsonl --tokenizer path/to/model --backend llguidance --limit 20"
        ),
    )
    checks.add_argument("file", type=Path, metavar="FILE", help="the schemas, one JSON object a line")
    checks.add_argument(
        "--tokenizer",
        required=True,
        metavar="T",
        help="a Hugging Face model directory, a .tiktoken file, or a tekken.json",
    )
    checks.add_argument("--backend", choices=BACKENDS, default="native", help="the engine; default: native")
    checks.add_argument("--limit", type=int, metavar="N", help="only the first N schemas")
    checks.add_argument(
        "--time-limit", type=float, default=TIME_LIMIT, metavar="S",
        help=f"seconds for a schema to compile, and again for its instances; default: {TIME_LIMIT:g}",
    )  # fmt: skip
    checks.add_argument(
        "--pattern", metavar="P",
        help=f"how a .tiktoken file splits text: {', '.join(SPLITS)}, or a regular expression; default: by its name",
    )  # fmt: skip
    checks.add_argument("--progress", action="store_true", help="a line for each schema on stderr")
    return parser
