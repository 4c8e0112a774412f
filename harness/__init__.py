"""The engine: data, training, evaluation, execution and records. It knows no paper and no table."""

__version__ = "0.1.0"
