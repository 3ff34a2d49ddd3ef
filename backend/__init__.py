"""The serving engine: receives program graphs and runs them with shared prefixes."""
