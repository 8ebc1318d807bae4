"""What the engine does on a GPU, measured part by part: `make bench-gpu`."""
