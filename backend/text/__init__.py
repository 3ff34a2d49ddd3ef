"""Text and ids: tokenizer, incremental detokeniser, stop strings, chat templates."""
