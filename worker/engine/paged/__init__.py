"""The engine's runner for graphs of PagedAttention: packed tokens, and keys and values in pages that are shared."""
