"""Makes ``threadpoolctl.threadpool_limits`` limit cnnkern's threads too: ``import cnnkern.interop.threadpoolctl``."""

from __future__ import annotations

import threadpoolctl


class CnnkernController(threadpoolctl.LibController):
    """Finds ``_cnnkern_core`` by its file name and its two exported functions.

    Source: threadpoolctl's documentation, "Custom controllers".
    """

    user_api = "cnnkern"
    internal_api = "cnnkern"
    filename_prefixes = ("_cnnkern_core",)
    check_symbols = ("cnnkern_get_num_threads", "cnnkern_set_num_threads")

    def get_num_threads(self) -> int:
        return self.dynlib.cnnkern_get_num_threads()

    def set_num_threads(self, num_threads: int) -> None:
        self.dynlib.cnnkern_set_num_threads(num_threads)

    def get_version(self) -> str:
        import cnnkern

        return cnnkern.__version__

    def set_additional_attributes(self) -> None:
        """Nothing to add."""


threadpoolctl.register(CnnkernController)
