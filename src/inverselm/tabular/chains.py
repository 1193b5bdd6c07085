"""Chains with side states: mistakes that can be recovered from, or not, and what IQLearn makes of them.

After the toy problem of arXiv 2409.01369, appendix A.3.3, whose details are not public: sizes and rules are ours. Not
as in a `TokenTree`, different histories meet in one state, so a policy is a table over states. Losses are exact
expectations: every transition of the chain is one action of a `TokenStats`, weighted by how often it occurs. What comes
of it: docs/explanation/toy-mdp.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..objectives import mixed_residual
from ..token_mdp.stats import TokenStats


@dataclass(frozen=True)
class Chain:
    """Places 0 .. length - 1 with the goal behind them, and beside each place a side state.

    At a place the first `num_good` actions go on, and are carried out as a mistake with probability `slip`; every other
    action is a mistake. A mistake leads to the side state. There action 0 leads back to the place if mistakes are
    `recoverable`; every other action ends the episode without success (`side_ends`), or does nothing. The S = 2 length
    states are the places, then their side states; goal and failure are S and S + 1, and end an episode with value 0.

    Attributes:
        length: places, >= 1.
        num_actions: A, in every state.
        num_good: actions that go on, 1 to A - 1: how many ways to go on the demonstrations show.
        slip: probability in [0, 1) that a good action is carried out as a mistake.
        recoverable: whether side states have a way back.
        side_ends: whether a second mistake in a row ends the episode; else the side state stays.
        horizon: longest episode in actions, >= length; what it cuts was not successful.

    Raises:
        ValueError: sizes that make no chain.

    Example:
        >>> chain = Chain(length=2, num_actions=2, num_good=1, slip=0.0)
        >>> chain.transitions.argmax(-1).tolist()  # 0, 1: places; 2, 3: beside them; 4: goal; 5: failure
        [[1, 2], [4, 3], [0, 5], [1, 5]]
    """

    length: int = 8
    num_actions: int = 5
    num_good: int = 3
    slip: float = 0.1
    recoverable: bool = True
    side_ends: bool = True
    horizon: int = 16

    def __post_init__(self) -> None:
        if not (1 <= self.length <= self.horizon and 1 <= self.num_good < self.num_actions and 0 <= self.slip < 1):
            raise ValueError("Need 1 <= length <= horizon, 1 <= num_good < num_actions and 0 <= slip < 1.")

    @property
    def num_states(self) -> int:
        """S, without goal and failure."""
        return 2 * self.length

    @cached_property
    def transitions(self) -> Float[Tensor, "S A S2"]:
        """(S, A, S + 2) probabilities of the next state; goal and failure are the last two."""
        table = torch.zeros(self.num_states, self.num_actions, self.num_states + 2, dtype=torch.float64)
        for place in range(self.length):
            side = self.length + place
            onward = place + 1 if place + 1 < self.length else self.num_states
            table[place, : self.num_good, onward] = 1.0 - self.slip
            table[place, : self.num_good, side] = self.slip
            table[place, self.num_good :, side] = 1.0
            table[side, :, self.num_states + 1 if self.side_ends else side] = 1.0
            if self.recoverable:
                table[side, 0] = 0.0
                table[side, 0, place] = 1.0
        return table

    @cached_property
    def edges(self) -> Int[Tensor, "E 3"]:
        """State, action and next state of every transition that can occur."""
        return self.transitions.nonzero()

    @cached_property
    def demonstrated_edges(self) -> Int[Tensor, "D 3"]:
        """Those of the demonstrations: every good action at every place, without a slip."""
        onward = [*range(1, self.length), self.num_states]
        return torch.tensor([[i, action, onward[i]] for i in range(self.length) for action in range(self.num_good)])

    def visits(self, policy: Float[Tensor, "*R S A"]) -> tuple[Float[Tensor, "*R S A"], Float[Tensor, " *R"]]:
        """How often a policy (probabilities) takes each action within the horizon; its chance of success. Exact."""
        at = policy.new_zeros(*policy.shape[:-2], self.num_states)
        at[..., 0] = 1.0
        taken, success = torch.zeros_like(policy), policy.new_zeros(policy.shape[:-2])
        for _ in range(self.horizon):
            flow = at.unsqueeze(-1) * policy
            taken = taken + flow
            after = flow.flatten(-2) @ self.transitions.flatten(0, 1)
            at, success = after[..., : self.num_states], success + after[..., self.num_states]
        return taken, success

    def success(self, policy: Float[Tensor, "*R S A"]) -> Float[Tensor, " *R"]:
        """Probability to reach the goal within the horizon, exact."""
        return self.visits(policy)[1]

    def demonstrations(self, count: int, generator: torch.Generator) -> Float[Tensor, "S A"]:
        """How often each action was taken in `count` demonstrations: along the chain, ways on drawn uniformly."""
        drawn = torch.randint(self.num_good, (count, self.length), generator=generator)
        table = torch.zeros(self.num_states, self.num_actions, dtype=torch.float64)
        table[: self.length] = torch.nn.functional.one_hot(drawn, self.num_actions).sum(0)
        return table


@dataclass(frozen=True)
class ChainRuns:
    """Soft Q-values of R seeds, learned offline and online from the same starts and demonstrations."""

    chain: Chain
    offline: Float[Tensor, "R S A"]
    online: Float[Tensor, "R S A"]

    def success(self, *, greedy: bool = False) -> tuple[Float[Tensor, " R"], Float[Tensor, " R"]]:
        """Offline and online, exact, of the policy softmax(Q), or of the action of the highest Q."""
        first, second = (
            self.chain.success(_greedy(q) if greedy else q.softmax(dim=-1)) for q in (self.offline, self.online)
        )
        return first, second

    def gap(self, *, greedy: bool = False) -> Float[Tensor, " R"]:
        """Online minus offline success."""
        offline, online = self.success(greedy=greedy)
        return online - offline


def chain_loss(
    chain: Chain,
    q: Float[Tensor, "R S A"],
    demonstrations: Float[Tensor, "R S A"],
    *,
    td_coef: float,
    mix_in: float = 0.0,
    gamma: float = 1.0,
) -> Float[Tensor, " R"]:
    """The expected loss of R tables of soft Q-values: `iqlearn`, or `iqlearn_online` with `mix_in` above 0.

        mean over shown actions of -log pi + lambda (1 - alpha) r^2, plus lambda alpha mean over own actions of r^2

    with r of `mixed_residual`. Weights are shares of the demonstrated actions, and of the actions of softmax(q) within
    the horizon; the latter are not differentiated: own samples are data.

    Args:
        chain: the problem.
        q: tables, float64.
        demonstrations: of each, see `Chain.demonstrations`.
        td_coef: lambda.
        mix_in: alpha.
        gamma: discount per action.

    Example:
        >>> loss = chain_loss(chain, q, demonstrations, td_coef=0.1, mix_in=0.1).sum()
    """
    shown = _read(q, chain.demonstrated_edges)
    state, action, _ = chain.demonstrated_edges.unbind(1)
    squared = mixed_residual(shown, mix_in=mix_in, gamma=gamma).square()
    loss = _mean((1.0 - mix_in) * td_coef * squared - shown.log_prob, demonstrations[:, state, action])
    if not mix_in:
        return loss
    state, action, after = chain.edges.unbind(1)
    taken, _ = chain.visits(q.detach().softmax(dim=-1))
    share = taken[:, state, action] * chain.transitions[state, action, after]
    squared = mixed_residual(_read(q, chain.edges), mix_in=mix_in, gamma=gamma).square()
    return loss + mix_in * td_coef * _mean(squared, share)


def learn_chain(
    chain: Chain,
    start: Float[Tensor, "R S A"],
    demonstrations: Float[Tensor, "R S A"],
    *,
    td_coef: float = 0.1,
    mix_in: float = 0.0,
    gamma: float = 1.0,
    steps: int = 500,
    learning_rate: float = 0.1,
) -> Float[Tensor, "R S A"]:
    """R tables of soft Q-values after Adam on :func:`chain_loss`, whose arguments these are.

    Example:
        >>> q = learn_chain(chain, torch.zeros(1, 16, 5, dtype=torch.float64), demonstrations[None], mix_in=0.1)
    """
    q = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([q], lr=learning_rate)
    for _ in range(steps):
        loss = chain_loss(chain, q, demonstrations, td_coef=td_coef, mix_in=mix_in, gamma=gamma).sum()
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        optimiser.step()
    return q.detach()


def compare_on_chain(
    chain: Chain,
    *,
    num_seeds: int = 20,
    num_demonstrations: int = 16,
    mix_in: float = 0.1,
    td_coef: float = 0.1,
    gamma: float = 1.0,
    steps: int = 500,
    learning_rate: float = 0.1,
) -> ChainRuns:
    """Offline and online IQLearn on the same demonstrations and starts.

    A seed draws its demonstrations and the table that both start from, standard normal numbers.

    Args:
        chain: the problem.
        num_seeds: R.
        num_demonstrations: of each seed.
        mix_in: alpha of the online arm.
        td_coef: lambda of both, as `gamma`, `steps` and `learning_rate` of Adam.
        gamma: discount per action.
        steps: of the optimiser.
        learning_rate: of the optimiser.

    Example:
        >>> mean_interval(compare_on_chain(Chain(recoverable=True)).gap())
    """
    generators = [torch.Generator().manual_seed(seed) for seed in range(num_seeds)]
    shown = torch.stack([chain.demonstrations(num_demonstrations, generator) for generator in generators])
    size = chain.num_states, chain.num_actions
    start = torch.stack([torch.randn(size, generator=generator, dtype=torch.float64) for generator in generators])
    learn = partial(
        learn_chain, chain, start, shown, td_coef=td_coef, gamma=gamma, steps=steps, learning_rate=learning_rate
    )
    return ChainRuns(chain, offline=learn(), online=learn(mix_in=mix_in))


def mean_interval(
    values: Float[Tensor, " R"], *, level: float = 0.95, resamples: int = 10_000
) -> tuple[float, float, float]:
    """Mean over seeds, and the percentile bootstrap's interval of it.

    Example:
        >>> mean_interval(torch.ones(5, dtype=torch.float64))
        (1.0, 1.0, 1.0)
    """
    drawn = torch.randint(len(values), (resamples, len(values)), generator=torch.Generator().manual_seed(0))
    means = values[drawn].mean(dim=1)
    return float(values.mean()), float(means.quantile(0.5 - level / 2)), float(means.quantile(0.5 + level / 2))


def _read(q: Float[Tensor, "R S A"], edges: Int[Tensor, "E 3"]) -> TokenStats:
    """(R, E): every transition as an action; goal and failure have value 0."""
    state, action, after = edges.unbind(1)
    values = torch.nn.functional.pad(q.logsumexp(dim=-1), (0, 2))
    mask = torch.ones(len(q), len(edges), dtype=torch.bool)
    return TokenStats(q[:, state, action], values[:, state], values[:, after], mask, document_ids=mask.long())


def _mean(values: Float[Tensor, "R E"], share: Float[Tensor, "R E"]) -> Float[Tensor, " R"]:
    return (values * share).sum(dim=1) / share.sum(dim=1)


def _greedy(q: Float[Tensor, "R S A"]) -> Float[Tensor, "R S A"]:
    return torch.nn.functional.one_hot(q.argmax(dim=-1), q.size(-1)).to(q.dtype)
