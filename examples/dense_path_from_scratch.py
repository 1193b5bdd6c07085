"""Dense-Path REINFORCE from scratch: a token-level reward out of an SFT run, and training with it, in plain torch.

    python dense_path_from_scratch.py
    python dense_path_from_scratch.py --kl_coef 0.5 --seed 1

Supervised fine-tuning (SFT) is inverse reinforcement learning in disguise (arXiv 2510.02493): the SFT policy is
soft-optimal for a reward that can be read off it, token by token. Relative to the checkpoint after half of the same
run it says which tokens the second half taught the model to like (eq. 5):

    r_t = log pi_SFT(a_t|s_t) - log pi_base(a_t|s_t)
    maximise  E_pi[ sum_t r_t ] - kl_coef * KL(pi || pi_SFT),  starting at pi_SFT, with no value network:
    gradient  A_t grad log pi(a_t|s_t),  A_t = G_t - baseline,  G_t = sum_{k >= t} (r_k - kl_coef * KL_k)

The optimum is known: pi ~ pi_SFT (pi_SFT / pi_base)^(1 / kl_coef) over answers. So 1 / kl_coef is how far one goes on
in the direction that SFT was moving in, and decoding from (1 + w) logits_SFT - w logits_base, w = 1 / kl_coef, is its
token-wise cousin that costs no training. A reward of SFT's own making can be gamed: look at exact match, not at reward.

The toy task: sort letters, "hcaf=" -> "acfh."; demonstrations are few and a share of them holds one wrong letter.

SEEN
"""

from __future__ import annotations

import argparse
import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

VOCAB = "abcdefghij=._"
END_OF_PROMPT, EOS, PAD = (VOCAB.index(symbol) for symbol in "=._")
LETTERS, SHORTEST, LONGEST = 10, 4, 8
WIDTH = 2 * LONGEST + 2


class TinyTransformer(nn.Module):
    """(B, T) ids -> (B, T, V) logits. Causal: right padding comes later and is never looked at, so no attention mask."""

    def __init__(self, width: int = 64, layers: int = 2):
        super().__init__()
        self.token, self.position = nn.Embedding(len(VOCAB), width), nn.Embedding(WIDTH, width)
        block = lambda: nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, F.gelu, batch_first=True, norm_first=True)
        self.blocks = nn.ModuleList(block() for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, len(VOCAB))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.position(torch.arange(tokens.size(1)))
        later = nn.Transformer.generate_square_subsequent_mask(tokens.size(1))
        for block in self.blocks:
            x = block(x, src_mask=later, is_causal=True)
        return self.head(self.norm(x))


def right_answer(prompt: list[int]) -> list[int]:
    return [*sorted(prompt[:-1]), EOS]


def plant_slip(answer: list[int], generator: torch.Generator) -> tuple[list[int], int]:
    """The answer with one wrong letter, and where it is."""
    where = int(torch.randint(0, len(answer) - 1, (), generator=generator))
    wrong = (answer[where] + int(torch.randint(1, LETTERS, (), generator=generator))) % LETTERS
    return [*answer[:where], wrong, *answer[where + 1 :]], where


def draw_prompts(count: int, generator: torch.Generator) -> list[list[int]]:
    lengths = torch.randint(SHORTEST, LONGEST + 1, (count,), generator=generator).tolist()
    return [[*torch.randint(0, LETTERS, (n,), generator=generator).tolist(), END_OF_PROMPT] for n in lengths]


def right_pad(prompts: list[list[int]], answers: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and action mask, both (B, WIDTH). Answers are actions, EOS included; prompts and padding are not."""
    tokens = torch.full((len(prompts), WIDTH), PAD)
    action_mask = torch.zeros(len(prompts), WIDTH, dtype=torch.bool)
    for i, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        tokens[i, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
        action_mask[i, len(prompt) : len(prompt) + len(answer)] = True
    return tokens, action_mask


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
    """A_t = G_t - mean return of the *other* answers to the same prompt at the same token; 0 where none is that long.

    Rows of a group are neighbours and start in the same column. The row itself stays out of its baseline: no bias.
    """
    mask = action_mask.unflatten(0, (-1, group_size))
    g = torch.where(mask, returns.unflatten(0, (-1, group_size)), 0.0)
    others = (g.sum(1, keepdim=True) - g) / (mask.sum(1, keepdim=True) - mask.long()).clamp(min=1)
    return torch.where(mask, g - others, 0.0).flatten(0, 1)


def dpr_loss(
    log_prob: Tensor, sft_log_prob: Tensor, base_log_prob: Tensor, action_mask: Tensor, group_size: int, kl_coef: float
) -> Tensor:
    """REINFORCE on policy: mean over actions of -A_t log pi(a_t|s_t). Its gradient is what counts, not its value.

    The KL is part of the reward (k1 = log pi - log pi_SFT of the sampled token, held constant), so that a token pays
    for the KL that it leads to. As a term of the loss k1 would do nothing: E[grad log pi] = 0.
    """
    with torch.no_grad():
        rewards = dense_reward(sft_log_prob, base_log_prob, action_mask) - kl_coef * (log_prob - sft_log_prob)
        advantages = leave_one_out(return_to_go(rewards, action_mask), action_mask, group_size)
    return -torch.where(action_mask, advantages * log_prob, 0.0).sum() / action_mask.sum().clamp(min=1)


@torch.no_grad()
def sample(policy, prompts: list[list[int]], temperature: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sampled ids and their action mask: what is scored later is what was sampled. Temperature 0 is greedy."""
    tokens, action_mask = right_pad(prompts, [[] for _ in prompts])
    end, running = torch.tensor([len(p) for p in prompts]), torch.arange(len(prompts))
    for _ in range(LONGEST + 1):
        logits = policy(tokens[running])[torch.arange(len(running)), end[running] - 1]
        action = logits.argmax(-1)
        if temperature > 0:
            action = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator).squeeze(-1)
        tokens[running, end[running]] = action
        action_mask[running, end[running]] = True
        end[running] += 1
        running = running[action != EOS]
    return tokens, action_mask


def sft(demos: tuple[Tensor, Tensor], args: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    """(SFT model, the same model half-way through its run)."""
    model, (tokens, action_mask) = TinyTransformer(), demos
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.lr, weight_decay=0.0)
    base = copy.deepcopy(model)
    for step in range(args.sft_steps):
        if step == args.sft_steps // 2:
            base = copy.deepcopy(model)
        batch = torch.randint(len(tokens), (32,))
        log_prob = token_log_probs(model(tokens[batch]), tokens[batch], action_mask[batch])
        optimiser.zero_grad()
        (-log_prob.sum() / action_mask[batch].sum()).backward()
        optimiser.step()
    return model.requires_grad_(False), base.requires_grad_(False)


def dpr(policy, sft_model, base, prompts, args, generator) -> None:
    optimiser = torch.optim.AdamW(policy.parameters(), lr=args.dpr_lr, weight_decay=0.0)
    for _ in range(args.dpr_steps):
        chosen = torch.randint(len(prompts), (args.batch_size,), generator=generator).tolist()
        tokens, mask = sample(policy, [prompts[i] for i in chosen for _ in range(args.group_size)], 1.0, generator)
        log_prob, sft_lp, base_lp = (token_log_probs(m(tokens), tokens, mask) for m in (policy, sft_model, base))
        optimiser.zero_grad()
        dpr_loss(log_prob, sft_lp, base_lp, mask, args.group_size, args.kl_coef).backward()
        optimiser.step()

def main(argv=None):
    parser = argparse.ArgumentParser(description="x")
    parser.add_argument("--sft_steps", type=int, default=1000)
    parser.add_argument("--dpr_steps", type=int, default=100)
    parser.add_argument("--kl_coef", type=float, default=2.0)
    parser.add_argument("--demos", type=int, default=400)
    parser.add_argument("--slips", type=float, default=.2)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--group_size", type=int, default=4)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--dpr_lr", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    import time; t0=time.time()
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    prompts, held_out = draw_prompts(args.demos, generator), draw_prompts(500, generator)
    answers = [right_answer(p) for p in prompts]
    answers = [plant_slip(a, generator)[0] if float(torch.rand((), generator=generator)) < args.slips else a for a in answers]
    sft_model, base = sft(right_pad(prompts, answers), args)
    print("sft", time.time()-t0)
    policy = copy.deepcopy(sft_model).requires_grad_(True)
    right=[right_answer(p) for p in held_out]
    R,_=right_pad(held_out,right)
    def show(name, pol):
        for T in (1.,.5,0.):
            tok,m=sample(pol,held_out,T,torch.Generator().manual_seed(args.seed))
            with torch.no_grad(): lp,s,b=(token_log_probs(x(tok),tok,m) for x in (pol,sft_model,base))
            n=len(tok)
            print(f"{name:10} T={T} reward {float(dense_reward(s,b,m).sum()/n):.3f} kl {float((lp-s).sum()/n):.3f} len {float(m.sum()/n):.2f} exact {float((tok==R).all(1).float().mean()):.3f}",flush=True)
    show("base",base); show("sft",sft_model)
    w=1/args.kl_coef
    show("guided",lambda t:(1+w)*sft_model(t)-w*base(t))
    pl=[plant_slip(a,generator) for a in right]
    tok,m=right_pad(held_out,[a for a,_ in pl]); s,b=(token_log_probs(x(tok),tok,m) for x in (sft_model,base))
    pos=torch.tensor([len(p)+w_ for p,(_,w_) in zip(held_out,pl)])
    for nm,x in (("r",dense_reward(s,b,m)),("logsft",s)):
        print("lowest planted",nm,float((torch.where(m,x,1e9).argmin(1)==pos).float().mean()))
    t0=time.time(); dpr(policy,sft_model,base,prompts,args,generator); print("dpr",time.time()-t0)
    show("dpr",policy)
if __name__=="__main__": main()
