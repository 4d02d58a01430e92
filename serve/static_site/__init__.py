"""The page without a server: a static site with the model in the browser."""
