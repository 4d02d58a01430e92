"""Which images there are, where their bytes come from, and their split. May import system."""
