"""Mirai: autoregressive visual generation with foresight, as one reproducible pipeline."""

__version__ = "0.1.0"
