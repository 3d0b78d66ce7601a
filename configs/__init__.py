"""Runs: one file per seed model, the shared recipe, and small ones for a CPU."""
