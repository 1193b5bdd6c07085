"""IQLearn from scratch: inverse reinforcement learning for a language model in one file of plain torch.

    python iqlearn_from_scratch.py                       # MLE and IQLearn on the same 200 demonstrations
    python iqlearn_from_scratch.py --td_coef 0.5 --seed 1

One idea carries everything: the logits of a language model are soft Q-values (arXiv 2409.01369, sec. 3),

    Q(s, a) = logit        V(s) = logsumexp_a Q(s, a)        pi(a|s) = softmax(Q) = exp(Q(s, a) - V(s))

where a state s is the text so far and an action a is the next token. Maximum likelihood (MLE, "SFT") fits Q - V and
leaves the level of V free. IQLearn fixes it too, by asking that Q and V of neighbouring tokens fit together (eq. 14):

    delta_t = Q(s_t, a_t) - gamma V(s_{t+1})             temporal-difference error, and also the recovered reward
    loss    = mean over the demonstrated tokens of [ -log pi(a_t|s_t) + td_coef * delta_t^2 ]

The toy task: running sums modulo 10. The prompt "372=" has the answer "302." (3, 3+7, 3+7+2, end). Demonstrations are
few, and a share of them holds a slip: one wrong digit from which the demonstrator goes on. Exact match is against the
answer without slips, NLL against held-out demonstrations with slips.
"""

from __future__ import annotations

import argparse
import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCAB = "0123456789=._"
EOS, PAD = VOCAB.index("."), VOCAB.index("_")
LONGEST = 8  # digits in a prompt; an answer has one token more, the EOS
WIDTH = 2 * LONGEST + 2


# ---- data ------------------------------------------------------------------------------------------------------------
def demonstrations(count: int, slips: float, generator: torch.Generator) -> list[tuple[list[int], list[int]]]:
    """(prompt, answer) token ids; in a share `slips` of the answers one digit is wrong, and the sum goes on from it."""
    rows = []
    for _ in range(count):
        length = int(torch.randint(4, LONGEST + 1, (), generator=generator))
        digits = torch.randint(0, 10, (length,), generator=generator).tolist()
        where = int(torch.randint(0, length, (), generator=generator))
        off_by = int(torch.randint(1, 10, (), generator=generator))
        slipped = float(torch.rand((), generator=generator)) < slips
        answer, total = [], 0
        for i, digit in enumerate(digits):
            total = (total + digit + (off_by if slipped and i == where else 0)) % 10
            answer.append(total)
        rows.append(([*digits, VOCAB.index("=")], [*answer, EOS]))
    return rows


def right_pad(rows: list[tuple[list[int], list[int]]], max_length: int = WIDTH) -> tuple[Tensor, Tensor]:
    """Token ids and action mask, (B, T). Only answers are actions: the policy did not choose the prompt.

    Rows longer than `max_length` lose their end, EOS included. That is truncation, not termination; see the loss.
    """
    tokens = torch.full((len(rows), max_length), PAD)
    action_mask = torch.zeros(len(rows), max_length, dtype=torch.bool)
    for i, (prompt, answer) in enumerate(rows):
        row = torch.tensor(prompt + answer)[:max_length]
        tokens[i, : len(row)] = row
        action_mask[i, len(prompt) : len(row)] = True
    return tokens, action_mask


# ---- model -----------------------------------------------------------------------------------------------------------
class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (h.unflatten(-1, (self.heads, -1)).transpose(1, 2) for h in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)  # causal: right padding is never looked at
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class TinyTransformer(nn.Module):
    def __init__(self, width: int = 64, layers: int = 2, heads: int = 4):
        super().__init__()
        self.token, self.position = nn.Embedding(len(VOCAB), width), nn.Embedding(WIDTH, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(layers)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(VOCAB))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, V) logits; column t holds Q(s, .) of the state that ends with token t."""
        x = self.token(tokens) + self.position(torch.arange(tokens.size(1)))
        return self.head(self.norm(self.blocks(x)))


# ---- the method ------------------------------------------------------------------------------------------------------
def iqlearn_loss(
    logits: Tensor, tokens: Tensor, action_mask: Tensor, eos_id: int, td_coef: float, gamma: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """mean over actions of [ -log pi(a_t|s_t) + td_coef * (Q(s_t, a_t) - gamma V(s_{t+1}))^2 ]; td_coef = 0 is MLE."""
    # Token t + 1 is the action taken in the state of column t. So T columns hold T - 1 actions, and the state after
    # each of them is the next column. The last token's column is the state after the answer: it is needed, too.
    action, mask = tokens[:, 1:], action_mask[:, 1:]
    q = logits[:, :-1].gather(-1, action.unsqueeze(-1)).squeeze(-1)  # Q(s_t, a_t)
    v = logits.logsumexp(dim=-1)
    value, next_value = v[:, :-1], v[:, 1:]  # V(s_t), V(s_{t+1})
    # Terminated: nothing comes after EOS, V = 0. Truncated (no EOS): more would have come, V stays what the model says.
    next_value = torch.where(action == eos_id, 0.0, next_value)
    nll = value - q  # -log pi = V - Q
    delta = q - gamma * next_value  # gradients flow through both: there is no target network
    # where, not multiplication: whatever stands at padding (even nan) is not read. One division, by all actions.
    count = mask.sum().clamp(min=1)
    mean = lambda x: torch.where(mask, x, 0.0).sum() / count
    loss = mean(nll + td_coef * delta.square())
    first = mask & (mask.cumsum(dim=1) == 1)
    metrics = {"nll": mean(nll), "td_error": mean(delta.abs()), "value_first": value[first].mean()}
    return loss, {name: number.detach() for name, number in metrics.items()}


def train(model: nn.Module, rows: list, td_coef: float, args: argparse.Namespace) -> nn.Module:
    """Both methods are this loop; they differ in td_coef alone."""
    tokens, action_mask = right_pad(rows, args.max_length)
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(args.seed)  # the same batches for both
    for step in range(args.steps):
        rate = args.lr * min(1.0, (step + 1) / 50)
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = torch.randint(len(rows), (args.batch_size,), generator=generator)
        logits = model(tokens[batch])
        loss, _ = iqlearn_loss(logits, tokens[batch], action_mask[batch], EOS, td_coef, args.gamma)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return model


# ---- evaluation ------------------------------------------------------------------------------------------------------
@torch.no_grad()
def sample(model: nn.Module, prompts: list[list[int]], temperature: float, generator: torch.Generator) -> Tensor:
    """Answers for right-padded prompts, one column at a time; temperature 0 is greedy."""
    tokens, _ = right_pad([(prompt, []) for prompt in prompts])
    end = torch.tensor([len(prompt) for prompt in prompts])
    rows, running = torch.arange(len(prompts)), torch.ones(len(prompts), dtype=torch.bool)
    for _ in range(LONGEST + 1):
        logits = model(tokens)[rows, end - 1]
        if temperature > 0:
            action = (logits / temperature).softmax(-1).multinomial(1, generator=generator).squeeze(-1)
        else:
            action = logits.argmax(-1)
        tokens[rows[running], end[running]] = action[running]
        end = end + running.long()
        running = running & (action != EOS)
    return tokens


@torch.no_grad()
def evaluate(model: nn.Module, rows: list, gamma: float, seed: int) -> dict[str, float]:
    """Numbers on held-out rows: `rows` have slips, exact match is against the right answer."""
    tokens, action_mask = right_pad(rows)
    _, metrics = iqlearn_loss(model(tokens), tokens, action_mask, EOS, 0.0, gamma)
    right, _ = right_pad([(p, [sum(p[: i + 1]) % 10 for i in range(len(p) - 1)] + [EOS]) for p, _ in rows])
    generator = torch.Generator().manual_seed(seed)
    result = {name: float(number) for name, number in metrics.items()}
    for name, temperature in (("exact_t1", 1.0), ("exact_greedy", 0.0)):
        answers = sample(model, [prompt for prompt, _ in rows], temperature, generator)
        result[name] = float((answers == right).all(dim=1).float().mean())
    return result


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description="MLE and IQLearn on a toy task, from scratch.")
    parser.add_argument("--td_coef", type=float, default=0.1, help="lambda, the weight of delta^2; MLE is always run too")
    parser.add_argument("--gamma", type=float, default=1.0, help="discount per token")
    parser.add_argument("--steps", type=int, default=1000, help="optimiser steps of each run")
    parser.add_argument("--seed", type=int, default=0, help="seed of data, weights and samples")
    parser.add_argument("--demos", type=int, default=200, help="number of demonstrations")
    parser.add_argument("--slips", type=float, default=0.2, help="share of demonstrations with a wrong digit")
    parser.add_argument("--max_length", type=int, default=WIDTH, help="cut training rows to this many tokens")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    args = parser.parse_args(argv)
    generator = torch.Generator().manual_seed(args.seed)
    torch.manual_seed(args.seed)
    demos = demonstrations(args.demos, args.slips, generator)
    held_out = demonstrations(500, args.slips, generator)
    start = TinyTransformer()
    results = {}
    print(f"{args.demos} demonstrations, {args.slips:.0%} with a slip; {args.steps} steps; seed {args.seed}")
    print(f"{'':14}{'NLL':>8}{'exact T=1':>11}{'greedy':>8}{'|delta|':>9}{'V(s_1)':>8}")
    for name, td_coef in (("mle", 0.0), ("iqlearn", args.td_coef)):
        model = train(copy.deepcopy(start), demos, td_coef, args)
        results[name] = r = evaluate(model, held_out, args.gamma, args.seed)
        print(f"{name:14}{r['nll']:8.3f}{r['exact_t1']:11.1%}{r['exact_greedy']:8.1%}{r['td_error']:9.3f}{r['value_first']:8.2f}")
    return results


if __name__ == "__main__":
    main()
