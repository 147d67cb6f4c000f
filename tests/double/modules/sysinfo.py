"""Facts about the machine."""


def pretty_bytes(number: float) -> str:
    """Return a size for people."""
    return f"{number / 1024:.1f} KB"
