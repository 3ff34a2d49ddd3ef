"""A discrete-event simulator: the real scheduler and prefix cache in virtual time, with a runner that only counts."""
