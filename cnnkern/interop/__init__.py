"""Adapters to other libraries: each module is imported by whoever wants it, and imports its library."""
