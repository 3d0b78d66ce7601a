"""Entities that may lie within each other, or have gaps: what tells them, part by part."""
