"""FSR: progressive feature self-reinforcement (AAAI 2024)."""

from methods.fsr.config import FSRConfig
from methods.fsr.method import FSR

__all__ = ["FSR", "FSRConfig"]
