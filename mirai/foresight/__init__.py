"""The foresight term of the loss: positions, teachers, heads, losses. Models are handed in, never imported."""
