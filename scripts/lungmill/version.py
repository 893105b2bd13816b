"""The version of lungmill, alone in its file: outputs record it, so the steps that write it depend on it."""

__version__ = "0.1.0"
