"""The public functions: each asks the fast path, else checks its arguments and builds a Call for plan.py."""
