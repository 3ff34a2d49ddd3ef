"""Metrics and watchdog."""
