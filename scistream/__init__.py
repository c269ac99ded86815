"""What both sides of SciStream share: protocol, session rules, vocabulary, certificates, errors."""

__version__ = "0.1.0"
