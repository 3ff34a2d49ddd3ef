"""Train the demo model's byte-level BPE tokenizer on a sample of the synthetic data.

Three choices differ from the common GPT-2 and Llama-3 split, all for the sake of a very
small model: every digit is a token of its own, a capitalized word never takes the space
before it (so a name is the same tokens wherever it stands, which makes copying easy), and
punctuation never joins a line break (so a line ends at a token boundary).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from examples.demo_model import smalltalk as st
from examples.demo_model import tips as tp
from examples.demo_model import words as w
from examples.demo_model.data import document
from examples.demo_model.facts import FACTS

PAD, BOS, START, END = "<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>"
SPECIAL = [PAD, BOS, START, END]
# Only these small words join the space before them: other words are the same tokens after a
# space, after a quotation mark and at the start of a line.
SMALL = (
    "the|a|an|is|are|was|were|be|been|it|its|he|she|they|we|you|of|to|in|on|at|for|from|with|by|as|and|or|but|not|no|so|if|then|than|that|this|these|there|here|what|which|who|whom|whose|"
    "when|where|how|do|does|did|has|have|had|will|would|can|could|should|may|must|my|your|his|her|our|their|me|him|them|us|one|some|any|all|more|most|very|too|about|into|out|up|after|before|"
    "like|please|give|need|has|made|called|name|people|years|old|dollars|each|every|much|many|make|get|go|take|because|also|just|only|think|know|say|tell|want"
)
SPLIT = (
    r"'(?:[sdmt]|ll|ve|re)(?!\p{L})"
    rf"| (?:{SMALL})(?![\p{{L}}\p{{M}}])|[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+"
    r"|[\p{Lu}\p{Lt}]+(?![\p{Ll}\p{M}])|[\p{Lu}\p{Lt}][\p{Ll}\p{M}]*"
    r"|\p{N}"
    r"| ?[^\s\p{L}\p{N}\p{M}]+"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{{- bos_token }}{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)


def corpus(docs: int, seed: int) -> Iterator[str]:
    """Documents plus extra copies of real words, so that random syllables do not fill the vocabulary."""
    rng = Random(seed)
    for _ in range(docs):
        for text, _ in document(rng):
            if text not in SPECIAL:
                yield text.replace(START, "\n").replace(END, "\n").replace(BOS, "")
    for _ in range(60):
        for f in FACTS:
            yield f.reply
            yield rng.choice(f.train)
        yield from st.ABOUT.values()
        yield from (reply for _, _, reply in st.SMALLTALK)
        for topic, entries in tp.TIPS.items():
            yield topic
            yield from (f"{tip} {more}" for tip, more in entries)
        for words in (w.FIRST, w.LAST, w.CITIES, w.TITLE_A, w.TITLE_N, w.PET_NAMES, w.STREETS):
            yield from words
        for words in (w.JOBS, w.ITEMS, w.FOODS, w.PLACES):
            yield from (f"a {word}" for word in words)
            yield from words


def train(docs: int, vocab: int, seed: int) -> Tokenizer:
    """Train and set up the tokenizer."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=SPECIAL,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tok.train_from_iterator(corpus(docs, seed), trainer)
    bos = tok.token_to_id(BOS)
    tok.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
    )
    return tok


def check(tok: Tokenizer, seed: int) -> None:
    """Assert that decoding inverts encoding, on documents and on random Unicode."""
    rng = Random(seed + 1)
    texts = [
        "".join(text for text, kind in document(rng) if kind != "skip")
        .replace(BOS, "")
        .replace(START, "")
        .replace(END, "")
        for _ in range(200)
    ]
    texts += [
        "".join(
            chr(rng.choice([rng.randint(32, 126), rng.randint(160, 0x2FFF), rng.randint(0x1F300, 0x1F6FF), 10, 32]))
            for _ in range(40)
        )
        for _ in range(300)
    ]
    for text in texts:
        ids = tok.encode(text, add_special_tokens=False).ids
        assert tok.decode(ids, skip_special_tokens=False) == text, repr(text)
    assert all(len(tok.encode(str(n), add_special_tokens=False).ids) == len(str(n)) for n in (7, 42, 2048))


def save(tok: Tokenizer, out: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    out.mkdir(parents=True, exist_ok=True)
    tok.save(str(out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "additional_special_tokens": [START],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
        "chat_template": CHAT_TEMPLATE,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Train the tokenizer and write it."""
    parser = argparse.ArgumentParser(
        description="Train the demo model's tokenizer and write tokenizer.json and tokenizer_config.json. "
        "Training the model needs this first; keep the tokenizer fixed afterwards."
    )
    parser.add_argument(
        "--out", type=Path, default=Path("backend/demo_model"), help="folder to write to (default: backend/demo_model)"
    )
    parser.add_argument("--docs", type=int, default=30000, help="synthetic documents to learn from (default: 30000)")
    parser.add_argument(
        "--vocab",
        type=int,
        default=4096,
        help="vocabulary size with the special tokens and all 256 bytes (default: 4096)",
    )
    parser.add_argument("--seed", type=int, default=11, help="random seed of the sample (default: 11)")
    args = parser.parse_args()
    tok = train(args.docs, args.vocab, args.seed)
    check(tok, args.seed)
    save(tok, args.out)
    print(f"wrote {args.out}/tokenizer.json with {tok.get_vocab_size()} tokens")


if __name__ == "__main__":
    main()
