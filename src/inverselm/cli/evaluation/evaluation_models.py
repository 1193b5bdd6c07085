"""The models of an evaluation, and the reward of its best-of-n: checked before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ...inputs.fingerprints import model_fingerprint
from ...inputs.models import check_model, check_reward_models, load_tokenizer, positions_of
from ..guidance import check_guidance, load_guided

if TYPE_CHECKING:
    from ...evaluation.examples import Example
    from ...scorers import TokenScorer

DEFAULT_LENGTH = 256


@dataclass
class Candidate:
    """A model to be evaluated.

    Attributes:
        label: in the results.
        name: folder or hub name.
        config: of the model (of an adapter's base).
        tokenizer: loaded already, as prompts are measured before anything else.
        baseline: folder or hub name of what guided samplers go away from; None without them.
        baseline_config: of that model.
    """

    label: str
    name: str
    config: Any
    tokenizer: Any
    baseline: str | None = None
    baseline_config: Any = None

    def fingerprint(self) -> dict[str, str]:
        """Hashes of its files."""
        return model_fingerprint(self.name, self.config)

    def baseline_fingerprint(self) -> dict[str, str]:
        """Hashes of its baseline's files."""
        assert self.baseline is not None, "see check_guided"
        return model_fingerprint(self.baseline, self.baseline_config)

    def load(self, args: Any, *, guided: bool = False) -> tuple[Any, Any]:
        """The model, and its baseline if asked for (else None), on the device of the flags."""
        baseline = self.baseline if guided else None
        loading = {name: getattr(args, name) for name in ("device", "dtype", "trust_remote_code")}
        return load_guided(self.name, baseline, **loading)


@dataclass
class Reward:
    """The scorer of best-of-n.

    Attributes:
        kind: log_ratio or bellman.
        sft: folder or hub name.
        baselines: of a log-ratio.
        gamma: of a Bellman residual.
        configs: of all its models.
        loaded: the scorer, once it is needed.
    """

    kind: str
    sft: str
    baselines: list[str]
    gamma: float
    configs: list[Any]
    loaded: TokenScorer | None = field(default=None)

    def fingerprint(self) -> dict[str, str]:
        """Hashes of its models' files, and what is computed of them."""
        found = {"kind": self.kind, "gamma": str(self.gamma)}
        for number, (name, config) in enumerate(zip([self.sft, *self.baselines], self.configs, strict=True)):
            found |= {f"{number} {key}": value for key, value in model_fingerprint(name, config).items()}
        return found

    def load(self, args: Any) -> TokenScorer:
        """The scorer, on the device of the flags; loaded once."""
        from ..scoring.score import load_scorer

        if self.loaded is None:
            loading = {name: getattr(args, name) for name in ("device", "dtype", "trust_remote_code")}
            named = SimpleNamespace(model_name_or_path=self.sft, gamma=self.gamma, **loading)
            self.loaded = load_scorer(named, self.kind, self.baselines)
        return self.loaded


def check_models(args: Any) -> list[Candidate]:
    """The models of the flags, with their tokenizers.

    Raises:
        UserError: a model that is not there or not whole, or a tokenizer without EOS.
    """
    from ...scorers.checks import check_tokenizer_has_eos

    found = []
    for label, name in zip(args.labels, args.model_name_or_path, strict=True):
        config = check_model(name, trust_remote_code=args.trust_remote_code)
        tokenizer = load_tokenizer(name, trust_remote_code=args.trust_remote_code)
        check_tokenizer_has_eos(tokenizer, name)
        found.append(Candidate(label, name, config, tokenizer))
    return found


def check_guided(args: Any, models: Sequence[Candidate]) -> None:
    """Give each model the baseline that guided samplers go away from: `--guided_by`, or the one in its folder.

    Raises:
        UserError: a model without a baseline, one that does not fit, or more or fewer names than models.
    """
    named: list[str | None] = list(args.guided_by) or [None]
    named = named * len(models) if len(named) == 1 else named
    if len(named) != len(models):
        raise UserError(f"--guided_by names {len(named)} baselines of {len(models)} models; name one, or one for each")
    for model, name in zip(models, named, strict=True):
        model.baseline = check_guidance(model.name, name, args.trust_remote_code)
        model.baseline_config = check_model(model.baseline, "--guided_by", args.trust_remote_code)


def check_reward(args: Any, models: Sequence[Candidate]) -> Reward:
    """The reward that `--reward SFT[:BASELINE]` names.

    An IQLearn folder alone gives its Bellman residual, anything else log pi_SFT - log pi_baseline.

    Raises:
        UserError: a model that is not there, no baseline, or another tokenizer than an evaluated model's.
    """
    from ...scorers.checks import check_same_tokenizer
    from ...scorers.markers import read_marker

    sft, colon, baseline = args.reward, "", ""
    if not Path(sft).expanduser().exists():
        sft, colon, baseline = args.reward.rpartition(":") if ":" in args.reward else (args.reward, "", "")
    if colon and not (sft and baseline):
        raise UserError(f"--reward {args.reward}: write SFT or SFT:BASELINE")
    trust = args.trust_remote_code
    config = check_model(sft, "--reward", trust)
    marker = read_marker(Path(sft).expanduser())
    if marker.get("role") == "iqlearn" and not baseline:
        reward = Reward("bellman", sft, [], float(marker.get("gamma", 1.0)), [config])
    else:
        names = check_reward_models(sft, baseline or None, trust, "--reward")
        configs = [config, *(check_model(name, "--reward", trust) for name in names)]
        reward = Reward("log_ratio", sft, names, 1.0, configs)
    tokenizer = load_tokenizer(sft, trust_remote_code=trust)
    for model in models:
        check_same_tokenizer(model.tokenizer, tokenizer, model.name, sft)
    return reward


def room(model: Candidate, examples: Sequence[Example], args: Any) -> int:
    """The longest answer that every prompt leaves room for in a model, at most what was asked for.

    Raises:
        UserError: conversations without a chat template, an empty prompt, or one that leaves no room.
    """
    from ...scorers.text import prompt_ids
    from ..common import check_chat_template

    kind = "prompt" if isinstance(examples[0].prompt, str) else "conversational-prompt"
    check_chat_template(model.tokenizer, kind, args.dataset_name)
    lengths = [len(prompt_ids(model.tokenizer, example.prompt)) for example in examples]
    longest = max(range(len(lengths)), key=lambda i: lengths[i])
    if not min(lengths):
        raise UserError(
            f"{examples[lengths.index(0)].where}: the prompt has no tokens for {model.name}; remove the row"
        )
    wanted = args.max_new_tokens or DEFAULT_LENGTH
    positions = positions_of(model.config)
    if positions is None or model.config.is_encoder_decoder:
        return wanted
    left = positions - lengths[longest]
    if left < 1 or (args.max_new_tokens and left < wanted):
        fix = "shorten it" if left < 1 else f"shorten it, or lower --max_new_tokens to {left}"
        raise UserError(
            f"{examples[longest].where}: the prompt has {lengths[longest]:,} tokens, which leaves no room for "
            f"{wanted if args.max_new_tokens else 1} more in the {positions:,} positions of {model.name}; {fix}"
        )
    return min(left, wanted)
