"""A head per fold, what they say of images they have not seen, and the page on it."""
