"""Peers behind our contract: what holds for the native engine holds for them, and their masks are ours."""

from __future__ import annotations

import importlib
import json
import random
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from stemma.backend.grammar.adapters import BACKENDS, available, backend_named
from stemma.backend.grammar.base import Grammar, Vocabulary
from stemma.backend.grammar.command import load_vocabulary
from stemma.lang.errors import ConstraintError, RequestError
from stemma.lang.params import Constraint
from tests.grammar_tools.fakes import byte_vocabulary

PEERS = ("llguidance", "xgrammar")
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "number": {"type": "integer"}},
    "required": ["name", "number"],
    "additionalProperties": False,
}
TAGS = {
    "type": "structural_tag",
    "structures": [{"begin": "<call=add>", "schema": {"type": "integer"}, "end": "</call>"}],
    "triggers": ["<call="],
}
PATTERNS = [
    r"(yes|no|maybe) [0-9]{2}-hello world",
    r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    r"((25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}[0-9]{1,3}",
    r"[a-z0-9._%+-]{1,20}@([a-z0-9-]{1,10}\.){1,3}[a-z]{2,6}",
    r"(The (quick|slow|very (old|young)) )(fox|dog|bear( cub)?)( today)?\.",
    r"(ab|abc|b)+(cab)?",
    r"(a|ab)(bc|c)(d*)",
    r'"([^"\\\x00-\x1f]|\\["\\/bfnrt]|\\u[0-9a-fA-F]{4})*"',
    r"[α-ω]{1,6} [一-龠]{1,3}",
    r"(naïve|nation|été|東京|東北)",
    r"a{3,17}b{0,2}",
    r"[^a]{1,9}",
]


@pytest.fixture(scope="module", params=PEERS)
def peer(request: pytest.FixtureRequest) -> str:
    """A peer's name; skipped where it is not installed."""
    pytest.importorskip(request.param)
    return request.param


def test_a_peer_refuses_the_options_that_it_has_not(peer: str, tokenizer: Vocabulary) -> None:
    compile = backend_named(peer).compile
    compile(Constraint("json_schema", "{}", whitespace="any"), tokenizer)
    for constraint in (
        Constraint("json_schema", "{}", lenient=True),
        Constraint("json_schema", "{}", whitespace="[ ]?"),
        Constraint("structural_tag", json.dumps(TAGS), whitespace="any"),
    ):
        with pytest.raises(ConstraintError, match=r"lenient|whitespace"):
            compile(constraint, tokenizer)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Vocabulary:
    return load_vocabulary(tiny_model)


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    return byte_vocabulary(
        "hello", " world", "hel", "yes", "may", "be", "12", "2024", "20", "01", "-0", "ab", "abc", "bc", "aaa", "aaaaa",
        "na", "nation", "ïve", "東", "京", "αβ", "γ", '"', '":', '", "', "name", '"name', "num", " ", "  ", "day",
        "fo", "x.", " today", "@a", ".com", "The ", "The quick", "user", "255", "25", ".1", size=400,
    )  # fmt: skip


def mask_ids(row: np.ndarray) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little")).tolist())


def compiled(name: str, kind: str, value: object, vocab: Vocabulary, *, narrow: bool = True) -> Grammar:
    text = value if isinstance(value, (str, tuple)) else json.dumps(value)
    return backend_named(name, narrow=narrow).compile(Constraint(kind, text), vocab)  # type: ignore[arg-type]


def spell(vocab: Vocabulary, ids: list[int]) -> str:
    return b"".join(vocab.token_bytes[i] or b"" for i in ids).decode()


def accepts(grammar: Grammar, vocab: Vocabulary, text: str) -> bool:
    """Byte by byte, or in the tokens that the masks force."""
    matcher, data = grammar.matcher(), text.encode()
    while data:
        ids = mask_ids(matcher.mask())
        token = next((i for i in sorted(ids, reverse=True) if data.startswith(vocab.token_bytes[i] or b"\xff")), None)
        if token is None or not matcher.accept(token):
            return False
        data = data[len(vocab.token_bytes[token] or b"") :]
    return matcher.is_complete()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("source", ["tokenizer", "words"])
def test_masks_equal_the_native_ones(peer: str, pattern: str, source: str, request: pytest.FixtureRequest):
    """Where an engine forces a token it says so alone; otherwise the rows are equal, bit for bit."""
    vocab: Vocabulary = request.getfixturevalue(source)
    native, theirs = (compiled(n, "regex", pattern, vocab, narrow=False) for n in ("native", peer))
    compared = 0
    for seed in range(4):
        draw, a, b, text = random.Random(seed), native.matcher(), theirs.matcher(), b""
        for _ in range(30):
            ours, other = mask_ids(a.mask()), mask_ids(b.mask())
            if peer == "xgrammar":
                other = {i for i in other if i in ours or not breaks_utf8(text + (vocab.token_bytes[i] or b""))}
            if len(ours) == 1 or len(other) == 1:
                assert ours & other
            else:
                assert ours == other
                compared += 1
            assert a.is_complete() == b.is_complete()
            assert a.is_finished() == b.is_finished()
            token = draw.choice(sorted(ours & other))
            assert a.accept(token) and b.accept(token)
            text += vocab.token_bytes[token] or b""
            if token in vocab.eos_ids:
                break
    assert compared


def breaks_utf8(text: bytes) -> bool:
    """Nothing that follows makes it UTF-8. The negated classes of xgrammar allow that: halves of surrogate pairs."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.reason != "unexpected end of data"
    return False


@pytest.mark.parametrize("pattern", PATTERNS)
def test_forced_tokens_are_what_masked_decoding_would_emit(peer: str, pattern: str, tokenizer: Vocabulary):
    grammar = compiled(peer, "regex", pattern, tokenizer)
    for seed in range(3):
        draw, matcher = random.Random(seed), grammar.matcher()
        for _ in range(20):
            forced, plain = matcher.forced(), matcher.clone()
            for token in forced:
                assert mask_ids(plain.mask()) == {token}
                other = next(i for i in range(256) if i != token)
                assert not plain.accept(other) and plain.accept(token)
            ids = mask_ids(plain.mask())
            assert len(ids) > 1 or ids <= tokenizer.eos_ids
            matcher = plain
            if not matcher.accept(draw.choice(sorted(ids))) or matcher.is_finished():
                break


def test_jump_forward_changes_no_token(peer: str, tokenizer: Vocabulary):
    grammar = compiled(peer, "regex", r'\{"name": "[a-c]{1,3}", "order": (true|false)\}', tokenizer)
    for seed in range(5):
        texts = []
        for jump in (False, True):
            draw, matcher, out = random.Random(seed), grammar.matcher(), []
            while not matcher.is_finished():
                forced = matcher.forced() if jump else []
                ids = sorted(mask_ids(matcher.mask()))
                step = forced or [ids[0] if len(ids) == 1 else draw.choice(ids)]
                assert all(matcher.accept(token) for token in step)
                out += step
            texts.append(out)
        assert texts[0] == texts[1]


def test_a_refused_token_changes_nothing(peer: str, words: Vocabulary):
    eos = min(words.eos_ids)
    matcher = compiled(peer, "regex", "(hello|hey)( world)?", words).matcher()
    before = mask_ids(matcher.mask())
    for token in (eos, ord("x"), -1, words.size - 1, words.size, 10**6):
        assert not matcher.accept(token)
    assert mask_ids(matcher.mask()) == before
    assert matcher.accept(words.encode("hello")[0])


def test_eos_is_legal_exactly_at_a_whole_match_and_ends_it(peer: str, words: Vocabulary):
    eos = min(words.eos_ids)
    matcher = compiled(peer, "regex", "ab(c)?", words).matcher()
    assert not matcher.is_complete() and eos not in mask_ids(matcher.mask())
    assert matcher.accept(ord("a")) and matcher.accept(ord("b"))
    assert matcher.is_complete() and not matcher.is_finished() and mask_ids(matcher.mask()) == {ord("c"), eos}
    assert matcher.forced() == []
    assert matcher.accept(eos)
    assert matcher.is_finished() and matcher.is_complete() and mask_ids(matcher.mask()) == {eos}
    assert matcher.forced() == [] and not matcher.accept(ord("c"))
    matcher.rollback(1)
    assert mask_ids(matcher.mask()) == {ord("c"), eos}
    assert matcher.accept(ord("c")) and matcher.is_finished() and mask_ids(matcher.mask()) == {eos}
    matcher.rollback(3)
    assert mask_ids(matcher.mask()) == {ord("a"), words.encode("ab")[0], words.encode("abc")[0]}
    with pytest.raises(ValueError, match="cannot roll back 1 tokens; 0 were accepted"):
        matcher.rollback(1)


def test_clones_go_their_own_ways(peer: str, words: Vocabulary):
    first = compiled(peer, "regex", "a(b|c)[0-9]{2}", words).matcher()
    assert first.accept(ord("a"))
    second = first.clone()
    assert first.accept(ord("b")) and second.accept(ord("c"))
    assert first.accept(ord("1"))
    assert mask_ids(second.mask()) == mask_ids(compiled(peer, "regex", "[0-9]{2}", words).matcher().mask())
    second.rollback(2)
    assert second.accept(ord("a"))
    first.rollback(2)
    assert mask_ids(first.mask()) == mask_ids(second.mask())


def test_rows_are_read_only_and_padding_is_clear(peer: str):
    vocab = byte_vocabulary("ab", size=301)
    for pattern in ("[^a]*", "a", "abc"):
        row = compiled(peer, "regex", pattern, vocab).matcher().mask()
        assert row.dtype == np.int32 and row.shape == (10,)
        assert not row.flags.writeable
        assert all(i < len(vocab.token_bytes) for i in mask_ids(row))


@pytest.mark.parametrize("eos", [frozenset(), frozenset([300]), frozenset([3, 4])])
def test_vocabularies_of_odd_shape(peer: str, eos: frozenset[int]):
    """Without EOS, with EOS beyond the logits, with two; with ids beyond the logits and an empty token."""
    vocab = Vocabulary([b"a", b"b", b"", b"b", None, b"ab", b"a"], 6, eos, lambda text: [5] * (len(text) // 2))
    legal = {i for i in eos if i < 6}
    matcher = compiled(peer, "regex", "[ab]{2,3}", vocab).matcher()
    assert mask_ids(matcher.mask()) == {0, 1, 3, 5} - legal
    assert matcher.accept(5) and not matcher.accept(6)
    assert matcher.is_complete() and mask_ids(matcher.mask()) == {0, 1, 3} | legal
    assert matcher.accept(0) and matcher.is_finished()
    assert mask_ids(matcher.mask()) == legal


def test_a_text_that_the_vocabulary_cannot_spell_is_a_dead_end_without_eos(peer: str):
    vocab = Vocabulary([b"a", b"b", None], 3, frozenset([2]), lambda text: [])
    matcher = compiled(peer, "regex", "ac|b", vocab).matcher()
    assert matcher.accept(0)
    assert mask_ids(matcher.mask()) == set()
    assert matcher.is_finished() and not matcher.is_complete()
    matcher.rollback(1)
    assert mask_ids(matcher.mask()) == {0, 1} and matcher.accept(1) and matcher.is_complete()


def test_choices_are_taken_literally(peer: str, words: Vocabulary):
    choices = ("a.c", 'say "hi"', "back\\slash", "new\nline", "naïve 東京", "tab\there", "ab", "abc", "/x/")
    grammar = compiled(peer, "choices", choices, words)
    assert all(accepts(grammar, words, choice) for choice in choices)
    assert not any(accepts(grammar, words, text) for text in ("abc.", "abd", "back/slash", "ax", "new"))


def test_json_schemas_are_enforced(peer: str, tokenizer: Vocabulary):
    grammar = compiled(peer, "json_schema", SCHEMA, tokenizer)
    for text in ('{"name": "Zoë", "number": 12}', '{"name":"","number":-1}'):
        assert accepts(grammar, tokenizer, text)
    for text in ('{"name": "x"}', '{"name": 1, "number": 2}', '{"name": "x", "number": 2, "more": 3}'):
        assert not accepts(grammar, tokenizer, text)


def test_white_space_can_be_bounded(words: Vocabulary):
    spaced = '{"name":    "x",    "number": 1}'
    constraint = Constraint("json_schema", json.dumps(SCHEMA))
    for peer, option in (("xgrammar", {"max_whitespace": 2}), ("llguidance", {"whitespace": False})):
        pytest.importorskip(peer)
        module = importlib.import_module(f"stemma.backend.grammar.adapters.{peer}")
        assert accepts(module.compile_constraint(constraint, words), words, spaced)
        bounded = module.compile_constraint(constraint, words, **option)
        assert not accepts(bounded, words, spaced)
        assert accepts(bounded, words, spaced.replace(" ", ""))


@pytest.mark.parametrize("grammar", ['root ::= "a" root "b" | "c"', 'start: "a" start "b" | "c"'])
def test_grammars_in_gbnf_and_in_lark(peer: str, grammar: str, words: Vocabulary):
    found = compiled(peer, "ebnf", grammar, words)
    assert accepts(found, words, "aacbb") and accepts(found, words, "c")
    assert not accepts(found, words, "aacb") and not accepts(found, words, "aacbbb")


def test_structural_tags_switch_from_text_to_a_schema_and_back(peer: str, words: Vocabulary):
    form = {"type": "triggered_tags", "triggers": TAGS["triggers"]}
    content = {"type": "json_schema", "json_schema": {"type": "integer"}}
    form["tags"] = [{"begin": "<call=add>", "content": content, "end": "</call>"}]
    for value in (TAGS, {"type": "structural_tag", "format": form}):
        grammar = compiled(peer, "structural_tag", value, words)
        assert accepts(grammar, words, "plain text")
        assert accepts(grammar, words, "so <call=add>12</call> and <call=add>3</call>!")
        assert not accepts(grammar, words, "so <call=add>x</call>")
        assert not accepts(grammar, words, "so <call=add>1")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[", "must be JSON"),
        ("[]", "must be an object"),
        ({}, "needs 'structures' and 'triggers', or 'format'"),
        ({"structures": [], "triggers": ["<"]}, "list 'structures' with entries"),
        ({"structures": [{"begin": "<a>", "end": ""}], "triggers": ["<"]}, "a tag of structural_tag needs 'schema'"),
        ({"structures": [{"begin": "<a>", "schema": {}, "end": ""}], "triggers": ["["]}, "begins the tag '<a>'"),
        ({"structures": [{"begin": 1, "schema": {}, "end": ""}], "triggers": ["["]}, "'begin' of a tag must be"),
    ],
)
def test_broken_structural_tags_are_explained(peer: str, value: object, message: str, words: Vocabulary):
    with pytest.raises(ConstraintError, match=message) as caught:
        compiled(peer, "structural_tag", value, words)
    assert "refuses" not in str(caught.value)


def test_refusals_carry_the_words_of_the_peer(peer: str, words: Vocabulary):
    for kind, value, said in (
        ("regex", "(a", {"llguidance": "unclosed group", "xgrammar": "parenthesis is not closed"}),
        ("json_schema", '{"type": "wat"}', {"llguidance": "Invalid type: wat", "xgrammar": 'Unsupported type "wat"'}),
        ("ebnf", 'root ::= ("a"', {"llguidance": "refuses", "xgrammar": "EBNF parser error"}),
    ):
        with pytest.raises(ConstraintError, match=f"^{peer} refuses this {kind}: ") as caught:
            compiled(peer, kind, value, words)
        assert said[peer] in str(caught.value)
        assert caught.value.param == kind
    with pytest.raises(ConstraintError, match="lone surrogate"):
        compiled(peer, "regex", "a\ud800", words)


def test_batches_are_filled_as_one_by_one(peer: str, words: Vocabulary):
    patterns = ["[0-9]{3}", "a(bc)?", "(ab|c)+", "hello"]
    matchers = [compiled(peer, "regex", p, words, narrow=False).matcher() for p in patterns]
    rows = np.zeros((len(matchers), (words.size + 31) // 32), np.int32)
    backend_named(peer).fill(matchers, rows)
    for row, matcher in zip(rows, matchers, strict=True):
        limit = set(range(words.size))
        assert mask_ids(row) & limit == mask_ids(matcher.mask())


def test_threads_may_share_a_grammar(peer: str, tokenizer: Vocabulary):
    grammar = compiled(peer, "regex", r"(\w+[ ,.-]?){0,40}!", tokenizer)
    errors: list[BaseException] = []

    def generate(seed: int) -> None:
        try:
            draw, matcher = random.Random(seed), grammar.matcher()
            for _ in range(15):
                assert matcher.accept(draw.choice(sorted(mask_ids(matcher.mask()))))
                if matcher.is_finished():
                    break
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=generate, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


@pytest.mark.parametrize("name", PEERS)
def test_a_missing_package_names_the_extra(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConstraintError, match=rf"pip install 'stemma-lang\[{name}\]'"):
        backend_named(name)
    assert name not in available() and "native" in available()
    module = importlib.import_module(f"stemma.backend.grammar.adapters.{name}")
    with pytest.raises(ConstraintError, match=rf"pip install 'stemma-lang\[{name}\]'"):
        module.compile_constraint(Constraint("regex", "a"), byte_vocabulary())


def test_an_unknown_engine_is_named():
    with pytest.raises(RequestError, match="must be one of native, llguidance, xgrammar, got 'outlines'"):
        backend_named("outlines")
    assert BACKENDS == ("native", "llguidance", "xgrammar")


def test_the_native_engine_is_one_of_them(words: Vocabulary):
    grammar = compiled("native", "regex", "[0-9]{3}", words)
    rows = np.zeros((2, (words.size + 31) // 32), np.int32)
    backend_named("native").fill([grammar.matcher(), grammar.matcher()], rows)
    assert mask_ids(rows[0]) == mask_ids(rows[1]) == mask_ids(grammar.matcher().mask())
