"""The tasks that models are evaluated on, and how their data is read."""
