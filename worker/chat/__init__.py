"""Text: messages to token ids, and token ids back to the answer a client expects."""
