"""Jump-forward: which tokens spell a forced text, so that nothing is lost against decoding it token by token.

When the automaton leaves only one byte string F, its tokens still depend on the tokenizer: F must be spelled as the
tokenizer would spell it, joined to what stands before it and to whatever may follow it (the compressed automaton of
SGLang, arXiv 2312.07104, with the cautions that its users had to learn). A token of F is certain when

1. encoding (last emitted tokens + F) gives the emitted tokens back, so that no merge runs over the seam, and
2. no token that starts inside or before it, and runs over the end of F, is allowed by what may follow F.
"""

from __future__ import annotations

import numpy as np

from stemma.backend.grammar.automaton import Dfa
from stemma.backend.grammar.base import Vocabulary
from stemma.backend.grammar.masks import Walker

CONTEXT_TOKENS = 3  # emitted tokens that are encoded again together with the forced text
MAX_TEXT = 256  # bytes of forced text looked at in one go


def canonical_tokens(
    dfa: Dfa, vocab: Vocabulary, walker: Walker, state: int, text: bytes, context: tuple[int, ...]
) -> list[int]:
    """The tokens of `text`, forced from `state`, that are certain after the emitted tokens `context`; may be [].

    Without context (the generation starts here) the text is encoded by itself: the prompt's last token stays as it is.
    """
    kept = _from_character_start(vocab, context)
    if context and not kept:
        return []
    before = b"".join(_bytes_of(vocab, token) for token in kept)
    whole = _complete_characters(before + text)
    if len(whole) <= len(before):
        return []
    tokens = vocab.encode(whole.decode())
    spelled = [_bytes_of(vocab, token) for token in tokens]
    if tuple(tokens[: len(kept)]) != kept or b"".join(spelled) != whole:
        return []
    text = whole[len(before) :]
    certain = _certain_length(dfa, walker, dfa.run(state, text), text)
    out, end = [], 0
    for token, part in zip(tokens[len(kept) :], spelled[len(kept) :], strict=True):
        end += len(part)
        if end > certain or not part:
            break
        out.append(token)
    return out


def likely_tokens(vocab: Vocabulary, text: bytes, context: tuple[int, ...]) -> list[int]:
    """The tokens that spell the forced `text` behind `context`, whatever may follow it: as the tokenizer would, up to
    its last whole character. [] for text that is not UTF-8."""
    kept = _from_character_start(vocab, context)
    before = b"".join(_bytes_of(vocab, token) for token in kept)
    whole = _complete_characters(before + text)
    if len(whole) > len(before):
        tokens = vocab.encode(whole.decode())
        if tuple(tokens[: len(kept)]) == kept:
            return tokens[len(kept) :]
    return vocab.encode(_complete_characters(text).decode())  # a merge over the seam: spell it by itself


def _bytes_of(vocab: Vocabulary, token: int) -> bytes:
    known = 0 <= token < len(vocab.token_bytes)
    return (vocab.token_bytes[token] or b"") if known else b""


def _from_character_start(vocab: Vocabulary, context: tuple[int, ...]) -> tuple[int, ...]:
    """The longest end of `context` that starts where a UTF-8 character starts."""
    for i, token in enumerate(context):
        if (_bytes_of(vocab, token)[:1] or b"\x80")[0] & 0xC0 != 0x80:
            return context[i:]
    return ()


def _complete_characters(text: bytes) -> bytes:
    """Without an unfinished character at the end; b"" if the text is not UTF-8."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return text[: error.start] if error.reason == "unexpected end of data" else b""
    return text


def _certain_length(dfa: Dfa, walker: Walker, end: int, text: bytes) -> int:
    """Up to where no token starts that runs over the end of `text` and is allowed in state `end` there."""
    trie = walker.trie
    row = np.zeros(trie.row_words, np.int32)
    for start in range(max(0, len(text) - trie.max_depth + 1), len(text)):
        node = -1
        for byte in text[start:]:
            node = trie.child(node, byte)
            if node < 0:
                break
        else:
            walker.fill(dfa, end, node + 1, int(trie.skip[node]), row)
            if row.any():
                return start
    return len(text)
