"""Attention under an interval mask: the table of backends and its rows."""
