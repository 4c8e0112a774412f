"""Trained networks at work: scored, asked for predictions, exported."""
