"""FSR: progressive feature self-reinforcement (AAAI 2024)."""

from typing import TYPE_CHECKING, Any

from methods.fsr.config import FSRConfig

if TYPE_CHECKING:
    from methods.fsr.method import FSR

__all__ = ["FSR", "FSRConfig"]


def __getattr__(name: str) -> Any:
    """The method when it is asked for: its hyper-parameters are known without torch."""
    if name != "FSR":
        raise AttributeError(f"methods.fsr has no {name!r}")
    from methods.fsr.method import FSR

    return FSR
