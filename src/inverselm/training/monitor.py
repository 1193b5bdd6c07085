"""Says in plain words when a policy runs away from what its reward was learned on."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class RunawayMonitor:
    """Watches answer length, truncation and KL of the rollouts against their first values.

    Attributes:
        length_ratio: warn when the mean length leaves [start / ratio, start * ratio].
        kl_limit: warn when the KL to the SFT model exceeds it, in nats per token.
        truncated_rise: warn when the share of truncated answers rises by more than this.
        window: rollouts that are averaged, at the start and now: single ones are noisy.

    Example:
        >>> monitor.update(length=40.0, truncated=0.0, kl=0.01)
        []
    """

    length_ratio: float = 1.5
    kl_limit: float = 0.5
    truncated_rise: float = 0.25
    window: int = 5
    _start: list[tuple[float, float, float]] = field(default_factory=list)
    _recent: list[tuple[float, float, float]] = field(default_factory=list)
    _said: set[str] = field(default_factory=set)

    def update(self, length: float, truncated: float, kl: float) -> list[str]:
        """Take in one rollout's means; returns new warnings, each said once until its cause has gone.

        Args:
            length: mean answer length in tokens.
            truncated: share of answers without EOS.
            kl: mean KL to the SFT model, nats per token.
        """
        self._recent = [*self._recent, (length, truncated, kl)][-self.window :]
        if len(self._start) < self.window:
            self._start.append((length, truncated, kl))
            return []
        start, began, _ = _means(self._start)
        length, truncated, kl = _means(self._recent)
        causes = {
            "longer": (
                length > self.length_ratio * start,
                f"Answers have grown from {start:.0f} to {length:.0f} tokens. The summed reward pays for every token "
                "on average, so a policy can earn it by length. Raise kl_coef, centre or standardise the rewards, or "
                "stop at an earlier checkpoint.",
            ),
            "shorter": (
                length * self.length_ratio < start,
                f"Answers have shrunk from {start:.0f} to {length:.0f} tokens: ending early avoids negative rewards. "
                "Raise kl_coef or lower the learning rate, or stop at an earlier checkpoint.",
            ),
            "truncated": (
                truncated > began + self.truncated_rise,
                f"{truncated:.0%} of the answers hit max_completion_length (at the start {began:.0%}): the policy no "
                "longer ends its answers. Raise max_completion_length or kl_coef, or stop at an earlier checkpoint.",
            ),
            "kl": (
                kl > self.kl_limit,
                f"The KL to the SFT model is {kl:.2f} nats per token. The reward was learned near the SFT model and "
                "means little this far from it: it is probably being gamed. Raise kl_coef or lower the learning rate, "
                "and choose the checkpoint on a validation metric.",
            ),
        }
        new = [text for name, (hit, text) in causes.items() if hit and name not in self._said]
        self._said = {name for name, (hit, _) in causes.items() if hit}
        return new


def _means(rows: list[tuple[float, float, float]]) -> tuple[float, float, float]:
    lengths, truncated, kls = zip(*rows, strict=True)
    return sum(lengths) / len(rows), sum(truncated) / len(rows), sum(kls) / len(rows)
