"""What a run costs, before it runs: forecasts and smoke runs."""
