"""Measures models: benchmarks now; tasks, tables and analysis to come."""
