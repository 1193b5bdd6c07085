"""Says in plain words when a GAIL run has collapsed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class CollapseMonitor:
    """Counts the steps in a row in which answers do not end, or the discriminator cannot be fooled.

    Attributes:
        patience: steps in a row that count as a collapse; 0 for never.
        truncated: share of own samples without EOS from which a step counts.
        accuracy: share of actions on which the discriminator is right, of the demonstrations and of own samples both,
            from which a step counts.
        endless: steps in a row so far in which answers did not end.
        separated: steps in a row so far in which the discriminator was not fooled.

    Example:
        >>> CollapseMonitor(patience=2).update(truncated=0.1, accuracy=0.8) is None
        True
    """

    patience: int = 25
    truncated: float = 0.98
    accuracy: float = 1.0
    endless: int = 0
    separated: int = 0

    def update(self, truncated: float, accuracy: float) -> str | None:
        """Take in one step; what has happened if it is a collapse.

        Args:
            truncated: share of own samples without EOS.
            accuracy: the lower of the discriminator's two accuracies.
        """
        self.endless = self.endless + 1 if truncated >= self.truncated else 0
        self.separated = self.separated + 1 if accuracy >= self.accuracy else 0
        if not self.patience:
            return None
        if self.endless >= self.patience:
            return (
                f"the policy has collapsed: for {self.endless} steps at least {self.truncated:.0%} of its answers ran "
                "to max_completion_length. Set mle_coef to 1, a reward_shift of 0.6931 or a higher kl_coef; if the "
                "demonstrations are that long, raise max_completion_length."
            )
        if self.separated >= self.patience:
            return (
                f"the discriminator has won: for {self.separated} steps it was right about at least "
                f"{self.accuracy:.1%} of the tokens, and its reward tells the policy nothing more. Lower "
                "discriminator_learning_rate, set mle_coef to 1, or start from an SFT model that is further trained."
            )
        return None
