"""The version, in one place without imports: any module may read it."""

__version__ = "0.1.0"
