"""Verbs on data sets: making labels, miniatures, checks and reports."""
