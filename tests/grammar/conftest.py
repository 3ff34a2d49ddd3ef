"""Small vocabularies, and a view of masks as sets."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stemma.backend.grammar.base import Vocabulary
from stemma.backend.grammar.compiler import compile_constraint, compile_schema
from stemma.backend.grammar.matcher import RegularGrammar
from stemma.lang.params import Constraint

SENTENCES = [
    '{"name": "Ada Lovelace", "order": {"orderId": 12345, "orderName": "first"}, "ok": true}',
    "The quick brown fox jumps over the lazy dog. The orders are ordered in order of orderliness.",
    "2024-01-31T12:34:56Z https://example.org/path?query=1 user.name@example.org 192.168.0.1",
    "naïve café Straße façade 東京都 日本語 Ωμέγα привет мир 😀😀👍",
    "yes no maybe true false null New York New Jersey Newark north south east west",
    "    return value  # indented\n\tif x == 1:\n        print('hello hello hello')\n",
] * 4


def greedy_encode(token_bytes: list[bytes | None]) -> Callable[[str], list[int]]:
    """Longest match first; bytes without a token are skipped, as a careless tokenizer might."""
    ids = {b: i for i, b in reversed(list(enumerate(token_bytes))) if b}
    longest = max(map(len, ids), default=0)

    def encode(text: str) -> list[int]:
        data, out, at = text.encode(), [], 0
        while at < len(data):
            for width in range(min(longest, len(data) - at), 0, -1):
                if (token := ids.get(data[at : at + width])) is not None:
                    out.append(token)
                    at += width
                    break
            else:
                at += 1
        return out

    return encode


def make_vocab(tokens: list[bytes], *, spare: int = 3) -> Vocabulary:
    """`tokens`, two special tokens (the first is EOS) and `spare` logits that no token owns."""
    token_bytes: list[bytes | None] = [*tokens, None, None]
    size = len(token_bytes) + spare
    return Vocabulary(token_bytes, size, frozenset([len(tokens)]), greedy_encode(token_bytes))


def random_vocab(seed: int, *, all_bytes: bool = True) -> Vocabulary:
    draw = random.Random(seed)
    tokens = [bytes([b]) for b in range(256)] if all_bytes else [bytes([b]) for b in b"abcdefgh0123 -.,"]
    alphabets = ["abc", "abcdefgh", "0123456789-.", 'ab"{}: ,', "aéß東😀ω", " \n\tax"]
    for _ in range(400):
        text = "".join(draw.choices(draw.choice(alphabets), k=draw.randint(1, 6))).encode()
        start = draw.randint(0, 1)  # also pieces of characters
        tokens.append(text[start:] or b"a")
    draw.shuffle(tokens)
    return make_vocab(tokens, spare=draw.randint(0, 40))


def train_bpe() -> Vocabulary:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    byte_of = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(rest)}
    token_bytes: list[bytes | None] = []
    for i in range(tokenizer.get_vocab_size()):
        piece = tokenizer.id_to_token(i)
        token_bytes.append(None if piece in ("<eos>", "<pad>") else bytes(byte_of[c] for c in piece or ""))
    return Vocabulary(token_bytes, len(token_bytes) + 5, frozenset([0]), lambda text: tokenizer.encode(text).ids)


def mask_ids(row: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


class World:
    """What the tests share, reached through one fixture."""

    make_vocab = staticmethod(make_vocab)
    random_vocab = staticmethod(random_vocab)
    mask_ids = staticmethod(mask_ids)

    def __init__(self, bpe: Vocabulary) -> None:
        self.bpe = bpe

    def regex(self, pattern: str, vocab: Vocabulary | None = None, **options: str) -> RegularGrammar:
        return compile_constraint(Constraint("regex", pattern), vocab or self.bpe, walker=options.get("walker"))

    def choices(self, *values: str, vocab: Vocabulary | None = None) -> RegularGrammar:
        return compile_constraint(Constraint("choices", values), vocab or self.bpe)

    def schema(self, schema: object, vocab: Vocabulary | None = None, **options: Any) -> RegularGrammar:
        return compile_schema(json.dumps(schema), vocab or self.bpe, **options)

    def text(self, tokens: list[int], vocab: Vocabulary | None = None) -> bytes:
        table = (vocab or self.bpe).token_bytes
        return b"".join((table[t] or b"") for t in tokens if t < len(table))


@pytest.fixture(scope="session")
def world() -> World:
    return World(train_bpe())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "pattern" in metafunc.fixturenames and not any(
        "pattern" in str(mark.args[0]) for mark in metafunc.definition.iter_markers("parametrize")
    ):
        metafunc.parametrize("pattern", PATTERNS)


PATTERNS = [
    r"abc",
    r"ab|abc",
    r"(ab)+",
    r"(a|b)*abb",
    r"a*?b+?c??",
    r"a{3}",
    r"[a-c]*+d?+",
    r"(a++(b|é)|[b-d]{1,2}+)",
    r"a{,3}",
    r"a{2,}b{1,2}",
    r"(a{2,3}){2}",
    r"(a?b?){3}c",
    r"(a*)*b",
    r"((a|b)?c?){0,4}",
    r"(a+){2,3}",
    r"(|a|ab)(c|)",
    r"^(foo|bar)$",
    r"(^a|^b)(c$|d$)",
    r"\Aab\Z",
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}",
    r"(25[0-5]|2[0-4][0-9]|1?[0-9]{1,2})(\.[0-9]{1,3}){3}",
    r"[a-z.]+@[a-z]+\.(org|com)",
    r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?",
    r'"([^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-f]{4})*"',
    r'\{"name": "[a-z]+", "ok": (true|false)\}',
    r'{"a": [0-9]+}',
    r"x{}|x{a}|{,",
    r".*",
    r".+\n",
    r"(?s).{2}",
    r"[^a]",
    r"[^\n]*!",
    r"[\w-]+",
    r"\w+\s\w+",
    r"\W\S[^0-9]",
    r"[\W]{2}",
    r"[\s\S]a",
    r"(?a)\w+\s?",
    r"(?i)hello",
    r"(?i)[a-c]x|straße",
    r"(?i)[^a-y]",
    r"(?i:ab)c",
    r"(?i)a(?-i:b)c",
    r"(?:ab|cd)(?P<name>e)?",
    r"a(?#comment)b",
    r"\u6771\xe9|\U0001F600|\N{GREEK SMALL LETTER OMEGA}",
    r"[\u3040-\u30ff]+",
    r"[é-ω東]{1,3}",
    r"[\x00-\x7f]{0,3}",
    r"\x41\101\0",
    r"[]a]+",
    r"[^]a]",
    r"[a\]\-b-]+",
    r"[+-]|[a-]",
    r"\.\*\+\?\(\)\[\]\{\}\|\\\^\$\/",
    r"a\tb\nc\r\f\v\a",
    r"[\b]",
    r"😀+|[😀-😎]é",
    r"(a|ab)(bc|c)(d*)",
    r"(((a)))((b)|(c))",
    r"(a{1,2}b){2,3}",
    r"(?m)^a$",
    r" {4}return\b"[:-2],
    r"",
    r"()",
    r"a||b",
]
