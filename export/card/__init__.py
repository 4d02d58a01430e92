"""The card of a model: what was measured of it, as pages, as checklists of reporting guidelines and as an ML-BOM."""
