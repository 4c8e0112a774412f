"""Tables and plots, computed from records alone and set beside the published cells."""
