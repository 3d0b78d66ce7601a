"""How a command speaks and how it ends."""
