"""What all pages and reports have in common: the skeleton, the stylesheet, titles, and where a line may break."""
