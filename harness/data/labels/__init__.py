"""Weak labels: kinds, files that tools write, and the store that training reads."""
