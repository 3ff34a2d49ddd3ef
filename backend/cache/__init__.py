"""The prefix cache and the KV slots."""
