"""Dense-Path REINFORCE from scratch: a token-level reward out of an SFT run, and training with it, in plain torch.

    python dense_path_from_scratch.py --kl_coef 2 --seed 0

Supervised fine-tuning (SFT) is inverse reinforcement learning in disguise (arXiv 2510.02493): its policy is optimal for
a reward that can be read off it, token by token. Relative to the checkpoint after half of the same run (eq. 5):

    r_t = log pi_SFT(a_t|s_t) - log pi_base(a_t|s_t)     what the second half taught the model to like
    maximise E_pi[ sum_t r_t ] - kl_coef * KL(pi || pi_SFT), starting at pi_SFT, without a value network:
    gradient A_t grad log pi(a_t|s_t),  A_t = G_t - baseline,  G_t = sum_{k >= t} (r_k - kl_coef * KL_k)

The optimum over answers is known, pi ~ pi_SFT (pi_SFT / pi_base)^w, w = 1 / kl_coef: w is how far one goes beyond SFT.
Decoding from (1 + w) logits_SFT - w logits_base ("guided") is its token-wise cousin, and needs no training.

The toy task: sort letters, "hcaf=" -> "acfh."; demonstrations are few, and a share of them holds one wrong letter.

Seen with seeds 0-2 (means, SFT / DPR / guided): reward at T=1 .50 / .58 / .74, exact match at T=1 55.0 / 53.1 / 54.1 %,
greedy 69.5 / 65.5 / 64.7 %. The reward rose as asked, the answers got no better: SFT's own reward can be gamed. It is
lowest at 57% of the planted letters; log pi_SFT alone, the free alternative, at 94%.
"""

import argparse
import copy

import torch
from torch import Tensor, nn

VOCAB = "abcdefghij=._"
END_OF_PROMPT, EOS, PAD = (VOCAB.index(symbol) for symbol in "=._")
LETTERS = 6  # in every prompt: prompts of one length need no padding, only sampled answers do
WIDTH = 2 * LETTERS + 2  # prompt, "=", answer, EOS
ANSWER = torch.arange(WIDTH) > LETTERS  # action mask of a demonstration: what follows "=" was chosen, EOS included


def draw(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """(count, WIDTH) rows with the right answer, the same with one letter planted wrong, and the column of that one."""
    letters, ends = torch.randint(10, (count, LETTERS)), torch.tensor([END_OF_PROMPT, EOS]).expand(count, 2)
    right = torch.cat([letters, ends[:, :1], letters.sort(dim=1).values, ends[:, 1:]], dim=1)
    where = torch.randint(LETTERS + 1, WIDTH - 1, (count, 1))
    wrong = right.scatter(1, where, (right.gather(1, where) + torch.randint(1, 10, (count, 1))) % 10)
    return right, wrong, where.squeeze(1)


class TinyTransformer(nn.Module):
    """(B, T) ids -> (B, T, V) logits. Causal: right padding comes later, so it is never looked at."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.token, self.position = nn.Embedding(len(VOCAB), width), nn.Embedding(WIDTH, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, len(VOCAB))

    def forward(self, tokens: Tensor) -> Tensor:
        causal = nn.Transformer.generate_square_subsequent_mask(tokens.size(1))
        x = self.token(tokens) + self.position.weight[: tokens.size(1)]
        return self.head(self.blocks(x, causal, is_causal=True))


# ---- the method: everything is (B, T), column t belongs to token t, and is 0 where token t is not an action ----------
def token_log_probs(logits: Tensor, tokens: Tensor, action_mask: Tensor) -> Tensor:
    """log pi(a_t|s_t). Token t was chosen in the state that ends with token t - 1: column t - 1 of the logits."""
    chosen = logits[:, :-1].log_softmax(-1).gather(-1, tokens[:, 1:].unsqueeze(-1)).squeeze(-1)
    return torch.where(action_mask, nn.functional.pad(chosen, (1, 0)), 0.0)


def dense_reward(sft_log_prob: Tensor, base_log_prob: Tensor, action_mask: Tensor) -> Tensor:
    """r_t = log pi_SFT(a_t|s_t) - log pi_base(a_t|s_t)."""
    return torch.where(action_mask, sft_log_prob - base_log_prob, 0.0)


def return_to_go(rewards: Tensor, action_mask: Tensor) -> Tensor:
    """G_t = sum_{k >= t} r_k (gamma = 1): what comes from this token on. Earlier rewards are not this token's doing."""
    return torch.where(action_mask, rewards, 0.0).flip(1).cumsum(dim=1).flip(1) * action_mask


def leave_one_out(returns: Tensor, action_mask: Tensor, group_size: int) -> Tensor:
    """A_t = G_t - mean G of the *other* answers to the same prompt (neighbour rows) that get this far, if any."""
    mask = action_mask.unflatten(0, (-1, group_size))
    g = torch.where(mask, returns.unflatten(0, (-1, group_size)), 0.0)
    others = (g.sum(1, keepdim=True) - g) / (mask.sum(1, keepdim=True) - mask.long()).clamp(min=1)
    return torch.where(mask, g - others, 0.0).flatten(0, 1)


def dpr_loss(ours: Tensor, log_sft: Tensor, log_base: Tensor, mask: Tensor, group_size: int, kl_coef: float) -> Tensor:
    """REINFORCE: mean over actions of -A_t log pi(a_t|s_t). The gradient is what counts, the value says nothing.

    The KL is paid in the reward, k1 = log pi - log pi_SFT of the sampled token without gradient, so that a token also
    pays for the KL it leads to. As a term of the loss k1 would pull nowhere: E_pi[grad log pi] = 0.
    """
    with torch.no_grad():
        rewards = dense_reward(log_sft, log_base, mask) - kl_coef * (ours - log_sft)
        advantages = leave_one_out(return_to_go(rewards, mask), mask, group_size)
    return -torch.where(mask, advantages * ours, 0.0).sum() / mask.sum().clamp(min=1)


@torch.no_grad()
def sample(policy, prompts: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sampled ids, padded after EOS, and their action mask. These ids are scored as they are. Temperature 0: greedy."""
    tokens, mask, done = prompts, torch.zeros_like(prompts, dtype=torch.bool), torch.zeros(len(prompts)).bool()
    while tokens.size(1) < WIDTH:
        logits = policy(tokens)[:, -1]
        action = torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0] if temperature else logits.argmax(-1)
        tokens = torch.cat([tokens, torch.where(done, PAD, action).unsqueeze(1)], dim=1)
        mask = torch.cat([mask, ~done.unsqueeze(1)], dim=1)  # EOS is an action, padding is not
        done = done | (action == EOS)
    return tokens, mask


def train_sft(rows: Tensor, steps: int) -> tuple[nn.Module, nn.Module]:
    """Maximum likelihood, learning rate down to 0. Returns the SFT model and its half-way checkpoint."""
    model = TinyTransformer()
    optimiser = torch.optim.AdamW(model.parameters(), weight_decay=0.0)
    for step in range(steps):
        if step == steps // 2:
            base = copy.deepcopy(model)  # half of the training samples seen: the baseline of the reward
        optimiser.param_groups[0]["lr"] = 1e-3 * (1 - step / steps)
        batch = rows[torch.randint(len(rows), (32,))]
        loss = -token_log_probs(model(batch), batch, ANSWER)[:, ANSWER].mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.requires_grad_(False), base.requires_grad_(False)


def train_dpr(sft: nn.Module, base: nn.Module, prompts: Tensor, args: argparse.Namespace) -> nn.Module:
    """Sample a group of answers to each prompt, score them, take one step, throw them away: on policy."""
    policy = copy.deepcopy(sft).requires_grad_(True)
    optimiser = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=0.0)
    for _ in range(args.steps):
        chosen = torch.randint(len(prompts), (16,)).repeat_interleave(args.group_size)
        tokens, mask = sample(policy, prompts[chosen], temperature=1.0)
        ours, log_sft, log_base = (token_log_probs(model(tokens), tokens, mask) for model in (policy, sft, base))
        optimiser.zero_grad()
        dpr_loss(ours, log_sft, log_base, mask, args.group_size, args.kl_coef).backward()
        optimiser.step()
    return policy.requires_grad_(False)


def look_at_rewards(sft: nn.Module, base: nn.Module, right: Tensor, wrong: Tensor, where: Tensor) -> dict[str, float]:
    """Print the token rewards of the first right and wrong answer; over all rows, do they find the planted letter?"""
    sums = []
    for kind, rows in (("right", right), ("wrong", wrong)):
        log_sft, log_base = (token_log_probs(model(rows), rows, ANSWER) for model in (sft, base))
        rewards = dense_reward(log_sft, log_base, ANSWER)
        sums.append(rewards.sum(dim=1))
        cells = [f"{VOCAB[a]}{r:+.2f}" for a, r in zip(rows[0, ANSWER], rewards[0, ANSWER], strict=True)]
        print(f"{kind}: {''.join(VOCAB[a] for a in rows[0, ~ANSWER])} {' '.join(cells)}  sum {sums[-1][0]:+.2f}")
    share = lambda hits: hits.float().mean().item()
    lowest = lambda score: share(torch.where(ANSWER, score, torch.inf).argmin(1) == where)
    found = {"reward": lowest(rewards), "log_sft": lowest(log_sft), "pairs": share(sums[0] > sums[1])}
    print("planted letter is the lowest: r {reward:.1%}, log pi_SFT alone {log_sft:.1%}, chance 14.3%".format(**found))
    print(f"sum of r is higher for the right answer than for the wrong one: {found['pairs']:.1%}, chance 50%")
    return found


def evaluate(policy, sft: nn.Module, base: nn.Module, right: Tensor, temperature: float) -> dict[str, float]:
    """Means over prompts; reward and log pi - log pi_SFT (the KL, if sampled at T=1) are sums over an answer."""
    tokens, mask = sample(policy, right[:, : LETTERS + 1], temperature)
    ours, log_sft, log_base = (token_log_probs(model(tokens), tokens, mask) for model in (policy, sft, base))
    numbers = {"reward": dense_reward(log_sft, log_base, mask).sum(1), "kl": (ours - log_sft).sum(1)}
    numbers |= {"length": mask.sum(1), "exact": (tokens == right).all(1)}
    return {name: x.float().mean().item() for name, x in numbers.items()}


def main(argv: list[str] | None = None) -> dict[str, dict[str, float]]:
    parser = argparse.ArgumentParser(description="Dense rewards from an SFT run, and REINFORCE on them, from scratch.")
    option = lambda name, default, text: parser.add_argument(name, type=type(default), default=default, help=text)
    option("--seed", 0, "seed of data, weights, batches and samples")
    option("--demos", 400, "number of demonstrations")
    option("--slips", 0.2, "share of demonstrations with a wrong letter")
    option("--sft_steps", 600, "optimiser steps of SFT, of 32 demonstrations")
    option("--steps", 100, "optimiser steps of Dense-Path REINFORCE, of 16 prompts")
    option("--lr", 1e-4, "its learning rate, constant")
    option("--kl_coef", 2.0, "beta > 0; 1 / beta is how far to go beyond SFT")
    option("--group_size", 4, "answers per prompt, at least 2")
    args = parser.parse_args(argv)
    if args.kl_coef <= 0 or args.group_size < 2:
        parser.error("--kl_coef must be above 0, --group_size at least 2")
    torch.manual_seed(args.seed)
    right, wrong, _ = draw(args.demos)
    demos = torch.where(torch.rand(args.demos, 1) < args.slips, wrong, right)
    held_out, planted, where = draw(500)
    sft, base = train_sft(demos, args.sft_steps)
    print(f"{args.demos} demonstrations, {args.slips:.0%} with a slip; kl_coef {args.kl_coef}; seed {args.seed}")
    results = {"planted": look_at_rewards(sft, base, held_out, planted, where)}
    w, policies = 1 / args.kl_coef, {"sft": sft, "dpr": train_dpr(sft, base, demos[:, : LETTERS + 1], args)}
    policies["guided"] = lambda tokens: (1 + w) * sft(tokens) - w * base(tokens)  # the control: no training
    print("policy  sampler   reward     KL  length  exact")
    for name, policy in policies.items():
        for sampler, temperature in (("T=1", 1.0), ("greedy", 0.0)):
            results[f"{name} {sampler}"] = n = evaluate(policy, sft, base, held_out, temperature)
            kl = n["kl"] if temperature else float("nan")
            print(f"{name:8}{sampler:9}{n['reward']:7.3f}{kl:7.3f}{n['length']:8.2f}{n['exact']:7.1%}")
    return results


if __name__ == "__main__":
    main()
