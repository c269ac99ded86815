"""Finding out who calls."""
