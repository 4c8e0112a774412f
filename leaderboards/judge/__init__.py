"""What rows say: claims, comparisons, collapsed seeds."""
