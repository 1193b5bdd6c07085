"""Dense-Path REINFORCE from scratch: a token-level reward out of an SFT run, and training with it, in plain torch.

    python dense_path_from_scratch.py --kl_coef 2 --seed 0

Supervised fine-tuning (SFT) is inverse reinforcement learning in disguise (arXiv 2510.02493): its policy is soft-optimal
for a reward that can be read off it, token by token. Relative to the checkpoint after half of the same run (eq. 5):

    r_t = log pi_SFT(a_t|s_t) - log pi_base(a_t|s_t)     what the second half taught the model to like
    maximise E_pi[ sum_t r_t ] - kl_coef * KL(pi || pi_SFT), starting at pi_SFT, without a value network:
    gradient A_t grad log pi(a_t|s_t),  A_t = G_t - baseline,  G_t = sum_{k >= t} (r_k - kl_coef * KL_k)

The optimum is known, pi ~ pi_SFT (pi_SFT / pi_base)^w over answers with w = 1 / kl_coef: w is how far one goes on beyond
SFT. Decoding from (1 + w) logits_SFT - w logits_base ("guided") is its token-wise cousin, and needs no training.

The toy task: sort letters, "hcaf=" -> "acfh."; demonstrations are few, and a share of them holds one wrong letter.

SEEN
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCAB = "abcdefghij=._"
END_OF_PROMPT, EOS, PAD = (VOCAB.index(symbol) for symbol in "=._")
LETTERS, SHORTEST, LONGEST = 10, 4, 8
WIDTH = 2 * LONGEST + 2  # the longest prompt with "=", and its answer with EOS
Policy = Callable[[Tensor], Tensor]  # (B, T) ids -> (B, T, V) logits


def draw(count: int, generator: torch.Generator) -> list[tuple[list[int], list[int], list[int], int]]:
    """(prompt, right answer, the answer with one letter planted wrong, column of that letter)."""
    number, rows = lambda low, high: int(torch.randint(low, high, (), generator=generator)), []
    for _ in range(count):
        letters = [number(0, LETTERS) for _ in range(number(SHORTEST, LONGEST + 1))]
        right, where = [*sorted(letters), EOS], number(0, len(letters))
        wrong = [*right[:where], (right[where] + number(1, LETTERS)) % LETTERS, *right[where + 1 :]]
        rows.append(([*letters, END_OF_PROMPT], right, wrong, len(letters) + 1 + where))
    return rows


def right_pad(prompts: list[list[int]], answers: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and action mask, both (B, WIDTH). Answers are actions, EOS included; prompts and padding are not."""
    tokens, action_mask = torch.full((len(prompts), WIDTH), PAD), torch.zeros(len(prompts), WIDTH, dtype=torch.bool)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        action_mask[i, len(prompt) : len(prompt) + len(answer)] = True
    return tokens, action_mask


class TinyTransformer(nn.Module):
    """Causal, so right padding, which comes later, is never looked at. Column t: the state that ends with token t."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.token, self.position = nn.Embedding(len(VOCAB), width), nn.Embedding(WIDTH, width)
        block = lambda: nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.block1, self.block2, self.norm, self.head = (
            block(),
            block(),
            nn.LayerNorm(width),
            nn.Linear(width, len(VOCAB)),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.size(1)))
        causal = nn.Transformer.generate_square_subsequent_mask(tokens.size(1))
        return self.head(self.norm(self.block2(self.block1(x, causal, is_causal=True), causal, is_causal=True)))


# ---- the method: everything is (B, T), column t belongs to token t, and is 0 where token t is not an action ----------
def token_log_probs(logits: Tensor, tokens: Tensor, action_mask: Tensor) -> Tensor:
    """log pi(a_t|s_t). Token t was chosen in the state that ends with token t - 1: column t - 1 of the logits."""
    chosen = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:].unsqueeze(-1)).squeeze(-1)
    return torch.where(action_mask, F.pad(chosen, (1, 0)), 0.0)


def dense_reward(sft_log_prob: Tensor, base_log_prob: Tensor, action_mask: Tensor) -> Tensor:
    """r_t = log pi_SFT(a_t|s_t) - log pi_base(a_t|s_t)."""
    return torch.where(action_mask, sft_log_prob - base_log_prob, 0.0)


def return_to_go(rewards: Tensor, action_mask: Tensor) -> Tensor:
    """G_t = sum_{k >= t} r_k (gamma = 1): what comes from this token on. Earlier rewards are not this token's doing."""
    paid = torch.where(action_mask, rewards, 0.0)
    return torch.where(action_mask, paid.flip(1).cumsum(dim=1).flip(1), 0.0)


def leave_one_out(returns: Tensor, action_mask: Tensor, group_size: int) -> Tensor:
    """A_t = G_t - mean return of the *other* answers to the prompt at the same token (0 where none is that long).

    A group's rows are neighbours and start in one column. A row is never part of its own baseline: no bias.
    """
    mask = action_mask.unflatten(0, (-1, group_size))
    g = torch.where(mask, returns.unflatten(0, (-1, group_size)), 0.0)
    others = (g.sum(1, keepdim=True) - g) / (mask.sum(1, keepdim=True) - mask.long()).clamp(min=1)
    return torch.where(mask, g - others, 0.0).flatten(0, 1)


def dpr_loss(
    log_prob: Tensor, sft_log_prob: Tensor, base_log_prob: Tensor, action_mask: Tensor, group_size: int, kl_coef: float
) -> Tensor:
    """REINFORCE: mean over actions of -A_t log pi(a_t|s_t). The gradient is what counts, the value says nothing.

    The KL is paid in the reward, k1 = log pi - log pi_SFT of the sampled token without gradient, so that a token also
    pays for the KL it leads to. As a term of the loss k1 would pull nowhere: E_pi[grad log pi] = 0.
    """
    with torch.no_grad():
        rewards = dense_reward(sft_log_prob, base_log_prob, action_mask) - kl_coef * (log_prob - sft_log_prob)
        advantages = leave_one_out(return_to_go(rewards, action_mask), action_mask, group_size)
    return -torch.where(action_mask, advantages * log_prob, 0.0).sum() / action_mask.sum().clamp(min=1)


@torch.no_grad()
def sample(policy: Policy, prompts: list, temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sampled ids and action mask; these very ids are scored later, no text in between. Temperature 0 is greedy."""
    tokens, action_mask = right_pad(prompts, [[]] * len(prompts))
    end, running = torch.tensor([len(p) for p in prompts]), torch.arange(len(prompts))
    for _ in range(LONGEST + 1):
        logits = policy(tokens[running])[torch.arange(len(running)), end[running] - 1]
        action = logits.argmax(-1)
        if temperature > 0:
            action = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator).squeeze(-1)
        tokens[running, end[running]], action_mask[running, end[running]] = action, True
        end[running] += 1
        running = running[action != EOS]
    return tokens, action_mask


def train_sft(tokens: Tensor, mask: Tensor, args: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    """Maximum likelihood, learning rate down to 0. Returns the SFT model and its half-way checkpoint, both frozen."""
    model = TinyTransformer()
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.sft_lr, weight_decay=0.0)
    for step in range(args.sft_steps):
        if step == args.sft_steps // 2:
            base = copy.deepcopy(model)  # half of the training samples seen: the baseline of the reward
        optimiser.param_groups[0]["lr"] = args.sft_lr * (1 - step / args.sft_steps)
        batch = torch.randint(len(tokens), (32,))
        log_prob = token_log_probs(model(tokens[batch]), tokens[batch], mask[batch])
        optimiser.zero_grad()
        (-log_prob.sum() / mask[batch].sum()).backward()
        optimiser.step()
    return model.requires_grad_(False), base.requires_grad_(False)


def train_dpr(sft: nn.Module, base: nn.Module, prompts: list, args: argparse.Namespace) -> nn.Module:
    """Sample a group of answers to each prompt, score them, take one step, throw them away: on policy."""
    policy, generator = copy.deepcopy(sft).requires_grad_(True), torch.Generator().manual_seed(args.seed)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=0.0)
    for _ in range(args.steps):
        chosen = torch.randint(len(prompts), (16,), generator=generator).repeat_interleave(args.group_size)
        tokens, mask = sample(policy, [prompts[i] for i in chosen], 1.0, generator)
        log_probs = (token_log_probs(model(tokens), tokens, mask) for model in (policy, sft, base))
        optimiser.zero_grad()
        dpr_loss(*log_probs, mask, args.group_size, args.kl_coef).backward()
        optimiser.step()
    return policy.requires_grad_(False)


def look_at_rewards(sft: Policy, base: Policy, rows: list) -> dict[str, float]:
    """Print the token rewards of one right and one planted-wrong answer, and how often a planted letter stands out."""
    tokens, mask = right_pad([rows[0][0], *(row[0] for row in rows)], [rows[0][1], *(row[2] for row in rows)])
    log_sft, log_base = (token_log_probs(model(tokens), tokens, mask) for model in (sft, base))
    rewards, column = dense_reward(log_sft, log_base, mask), torch.tensor([row[3] for row in rows])
    for i, kind in enumerate(("right", "wrong")):
        letters = zip(tokens[i, mask[i]], rewards[i, mask[i]], strict=True)
        text = "".join(VOCAB[a] for a in rows[0][0]) + "".join(f"  {VOCAB[a]}{r:+.2f}" for a, r in letters)
        print(f"{kind}: {text}   sum {rewards[i].sum():+.2f}")
    lowest = lambda score: float((torch.where(mask, score, torch.inf)[1:].argmin(1) == column).float().mean())
    chance = float((1 / mask[1:].sum(1)).mean())
    found = {"reward": lowest(rewards), "log pi_SFT alone": lowest(log_sft), "chance": chance}
    print("planted letter scored lowest of its answer: " + ", ".join(f"{k} {v:.1%}" for k, v in found.items()))
    return found


def evaluate(policy: Policy, sft: Policy, base: Policy, rows: list, temperature: float, seed: int) -> dict[str, float]:
    """Means over held-out prompts; reward and KL (an estimate at temperature 1 only) are sums over an answer."""
    prompts = [row[0] for row in rows]
    tokens, mask = sample(policy, prompts, temperature, torch.Generator().manual_seed(seed))
    ours, log_sft, log_base = (token_log_probs(model(tokens), tokens, mask) for model in (policy, sft, base))
    per_answer = {"reward": dense_reward(log_sft, log_base, mask).sum(1), "kl": (ours - log_sft).sum(1)}
    per_answer["length"] = mask.sum(1).float()
    per_answer["exact"] = (tokens == right_pad(prompts, [row[1] for row in rows])[0]).all(1).float()
    return {name: float(x.mean()) for name, x in per_answer.items()}


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description="Dense rewards from an SFT run, and REINFORCE on them, from scratch.")
    option = lambda name, default, text: parser.add_argument(name, type=type(default), default=default, help=text)
    option("--seed", 0, "seed of data, weights, batches and samples")
    option("--demos", 1000, "number of demonstrations")
    option("--slips", 0.2, "share of demonstrations with a wrong letter")
    option("--sft_steps", 600, "optimiser steps of SFT, of 32 demonstrations")
    option("--sft_lr", 1e-3, "learning rate of SFT, goes down to 0")
    option("--steps", 100, "optimiser steps of Dense-Path REINFORCE, of 16 prompts")
    option("--lr", 1e-4, "its learning rate, constant")
    option("--kl_coef", 2.0, "beta > 0; 1 / beta is how far to go beyond SFT")
    option("--group_size", 4, "answers per prompt, at least 2")
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    demos, held_out = draw(args.demos, generator), draw(500, generator)
    slipped = int(args.slips * args.demos)
    prompts, answers = [d[0] for d in demos], [d[2] for d in demos[:slipped]] + [d[1] for d in demos[slipped:]]
    sft, base = train_sft(*right_pad(prompts, answers), args)
    print(
        f"{args.demos} demonstrations, {args.slips:.0%} with a wrong letter; kl_coef {args.kl_coef}; seed {args.seed}"
    )
    results, w = {"planted": look_at_rewards(sft, base, held_out)}, 1 / args.kl_coef
    guided = lambda tokens: (1 + w) * sft(tokens) - w * base(tokens)
    print(f"{'':8}{'sampler':9}{'reward':>7}{'KL':>7}{'length':>8}{'exact':>7}")
    for name, policy in (("sft", sft), ("guided", guided), ("dpr", train_dpr(sft, base, prompts, args))):
        for sampler, temperature in (("T=1", 1.0), ("greedy", 0.0)):
            results[f"{name} {sampler}"] = n = evaluate(policy, sft, base, held_out, temperature, args.seed)
            kl = f"{n['kl']:7.3f}" if temperature else f"{'-':>7}"
            print(f"{name:8}{sampler:9}{n['reward']:7.3f}{kl}{n['length']:8.2f}{n['exact']:7.1%}")
    return results


if __name__ == "__main__":
    main()
