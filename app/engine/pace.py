"""Owns how much of the waiting prompts a step may compute beside running streams. Plain numbers: knows no sequences.

A prompt of thousands of tokens computed in one step would hold up every stream that is running for as long as that takes. So
the share of prompts in a step is what their tokens, by the steps seen so far, may cost: `STRETCH` times a step without them,
and in any case the few hundredths of a second that no reader notices, so that prompts do not starve beside quick steps.
"""

STRETCH = 1.5
UNNOTICED_SECONDS = 0.05
# Fewer are not worth a step's fixed costs; a multiple of it keeps the number of different sizes small.
LEAST = 16
_WEIGHT = 0.25
_OUTLIER = 4.0


class PrefillPace:
    """Learns what tokens cost and gives the budget, `LEAST` to `most` prompt tokens per step."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._step: float | None = None
        self._token: float | None = None

    @property
    def budget(self) -> int:
        """Prompt tokens for a step that has running streams; all there is room for until both costs are known."""
        if self._step is None or self._token is None:
            return self._most
        tokens = int(max(STRETCH * self._step, UNNOTICED_SECONDS) / self._token)
        return min(max(tokens - tokens % LEAST, LEAST), self._most)

    def observe(self, seconds: float, num_streams: int, num_prompt_tokens: int) -> None:
        """Take note of a step that computed one token for each of `num_streams` and so many tokens of prompts."""
        if num_prompt_tokens == 0:
            self._step = _moved(self._step, seconds) if num_streams else self._step
        elif num_streams == 0:
            self._token = _moved(self._token, seconds / num_prompt_tokens)
        elif self._step is not None:
            # At least a tenth of the step: one that was quicker than a step without prompts says little about their cost.
            self._token = _moved(self._token, max(seconds - self._step, seconds / 10) / num_prompt_tokens)


def _moved(mean: float | None, value: float) -> float:
    """Return the running mean with a new value in it, which counts as `_OUTLIER` times the mean at most."""
    return value if mean is None else mean + _WEIGHT * (min(value, _OUTLIER * mean) - mean)
