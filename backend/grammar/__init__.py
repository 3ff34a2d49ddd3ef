"""Constrained decoding: constraints compile into grammars, a grammar makes matchers, a matcher makes bitmasks."""
