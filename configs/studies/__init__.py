"""Studies: runs beside each other, over seeds, and the tables that answer a question."""
