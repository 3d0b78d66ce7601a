"""Measures models: what they are worth on tasks, in tables and pages, and what our code costs, in benches."""
