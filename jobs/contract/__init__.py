"""The wire: what clients send and receive, its limits and its error texts."""
