"""The command: what a person types."""
