"""Text and ids: tokenizer, incremental detokeniser, stop strings, chat templates."""

from stemma.backend.text.chat import ChatTemplate
from stemma.backend.text.detokenize import Detokenizer
from stemma.backend.text.stops import StopChecker, StopMatch, split_at_cut
from stemma.backend.text.stream import TextStream
from stemma.backend.text.tokenizer import Tokenizer

__all__ = ["ChatTemplate", "Detokenizer", "StopChecker", "StopMatch", "TextStream", "Tokenizer", "split_at_cut"]
