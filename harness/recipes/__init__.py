"""Recipes and protocols: typed values, the files they stand in, names, and what they resolve to."""
