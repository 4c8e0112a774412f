"""Trials: checked, run and recorded, one after another in this process or handed to Ray."""
