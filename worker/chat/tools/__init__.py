"""Functions that a model may call: how it is told of them, how it writes calls, how it is held to them."""
