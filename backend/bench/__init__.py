"""Benchmarks: stemma bench ..."""
