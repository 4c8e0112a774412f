"""Recipes as data: one TOML file per method, one table per training run."""
