"""What a run needs, before there is hardware; and what the hardware here can do."""
