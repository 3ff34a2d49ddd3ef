"""One folder for each operation: the contract, the plain torch reference, and the fast implementations."""

import os

# Threads of an OpenMP team wait for each other by spinning. libgomp's default of 300,000 turns (milliseconds) is fine
# on idle cores; when another process holds one of them, a step takes twenty times as long, because the spinning thread
# never gives its core to the one it waits for. Read once, when torch loads libgomp; no effect after that.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
