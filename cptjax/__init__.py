"""Continued pretraining of ModernBERT encoders with a causal detour, in JAX."""

__version__ = "0.1.0"
