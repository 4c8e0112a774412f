"""Data sets in their official layouts, and those of users."""
