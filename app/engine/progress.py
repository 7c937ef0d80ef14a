"""Owns the progress of loading a model: bars on a terminal, log lines elsewhere, a number for the readiness probe.

Knows transformers' hook for progress bars and nothing else of loading.
"""

import io
import logging
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from huggingface_hub.utils.tqdm import disable_progress_bars
from tqdm import tqdm
from transformers.utils.logging import set_tqdm_hook

logger = logging.getLogger("tfoai.engine")

_LOG_EVERY = 0.25


class ProgressHook:
    """While entered, reports the loading of model `name`.

    `on_progress` gets the finished share, 0 to 1, of the bar that runs (loading has one that matters: the weights).
    """

    def __init__(self, name: str, on_progress: Callable[[float], None]) -> None:
        self._name = name
        self._on_progress = on_progress
        self._is_terminal = sys.stderr.isatty()
        self._next_log = _LOG_EVERY
        self._previous: Any = None

    def __enter__(self) -> "ProgressHook":
        if not self._is_terminal:
            disable_progress_bars()
        self._previous = set_tqdm_hook(self._make_bar)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        set_tqdm_hook(self._previous)

    def _make_bar(self, factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hook = self

        class Bar(tqdm):  # type: ignore[misc]  # tqdm has no annotations
            def display(self, msg: str | None = None, pos: int | None = None) -> bool:
                if self.total:
                    hook._report(self.n / self.total)
                return bool(super().display(msg, pos)) if hook._is_terminal else True

        kwargs = {**kwargs, "disable": False, "mininterval": 0.1}
        if not self._is_terminal:
            kwargs["file"] = io.StringIO()
        if kwargs.get("desc"):
            kwargs["desc"] = f"{self._name}: {kwargs['desc']}"
        return Bar(*args, **kwargs)

    def _report(self, share: float) -> None:
        self._on_progress(share)
        if not self._is_terminal and share >= self._next_log:
            self._next_log = share + _LOG_EVERY
            logger.info("model.loading", extra={"model": self._name, "percent": round(100 * share)})
