"""From text to a token store."""
