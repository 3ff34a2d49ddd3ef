"""How the bundled demo model was made: synthetic data, tokenizer, training and evaluation."""
