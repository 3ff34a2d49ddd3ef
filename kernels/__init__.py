"""One folder for each operation: the contract, the plain torch reference, and the fast implementations."""
