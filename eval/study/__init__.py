"""Studies: many runs of one config beside each other, over seeds, and what their differences say."""
