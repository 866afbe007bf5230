"""``python -m cnnkern_cli``: the same as the ``cnnkern`` command."""

from . import main

main(prog_name="cnnkern")
