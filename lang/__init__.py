"""The words of the language: frozen nodes, argument checks, types and constraints. Runs nothing; stdlib only."""
