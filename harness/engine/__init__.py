"""Training: what a method is and may use, batches and their loader, processes, the loop."""
