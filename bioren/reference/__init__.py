"""The reference population, and queries mapped onto it."""
