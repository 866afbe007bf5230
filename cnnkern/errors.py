"""The exceptions of the library. Every message names op, argument, value, rule and fix."""


class ArgumentError(ValueError):
    """A value is wrong by itself: a stride of 0, an unknown layout."""


class ShapeError(ValueError):
    """Values do not fit together, or a size overflows."""


class DTypeError(TypeError):
    """A data type that the op does not take, or types that do not go together."""


class NoKernelError(RuntimeError):
    """The request is legal but no kernel serves it; the message lists every kernel's sentence."""
