"""Token ids in, token ids out: knows nothing of text, of batches or of databases."""
