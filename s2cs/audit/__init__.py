"""The audit log: who asked what, when, from where, and what came of it."""
