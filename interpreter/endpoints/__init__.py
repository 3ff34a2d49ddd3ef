"""One file for each thing a program can run on; `base.py` is the contract."""
