"""What can be seen of a running engine: the watchdog, figures of a process, metrics."""
