"""FSR: progressive feature self-reinforcement (AAAI 2024)."""
