"""Who may ask, and under which address: the API key, host names, other web sites, the prefix of a proxy."""
