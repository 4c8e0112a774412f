"""Plots for a paper and for the page."""
