"""Renders the findings of an audit as a page and as text. May import the rest of the audit."""
