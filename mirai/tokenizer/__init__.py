"""Images to discrete codes and back: LlamaGen's VQGAN at any width, its small-scale training, its files."""
