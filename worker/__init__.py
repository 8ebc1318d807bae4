"""The inference side: a prompt, from messages to text, with no batch in sight but in `pump`."""
