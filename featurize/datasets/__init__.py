"""Which images there are, where their bytes come from, their groups and splits. May import system."""
