"""More than one engine: which replica a program runs on."""
