"""LlamaGen's class-conditional transformer. Nothing here knows how it is trained, nor of foresight."""
