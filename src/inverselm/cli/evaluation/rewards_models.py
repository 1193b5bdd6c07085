"""The models whose rewards are judged, what is read from each of them, and the rewards made of that."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..output import Chunks, in_chunks

CHUNK = 32  # batches between two saves
SFT, LOG_PI = "sft", "log pi"
_LABELLED = re.compile(r"([\w.-]+)=(.+)")


@dataclass(frozen=True)
class Judged:
    """One model to read.

    Attributes:
        label: its name in files and tables.
        path: folder or hub name.
        role: "sft", "baseline" or "q_function".
        group: the reward that it belongs to; several baselines of one reward are averaged.
        gamma: discount of its Q - gamma V'.
        config: the model's configuration.
    """

    label: str
    path: str
    role: str
    group: str
    gamma: float
    config: Any

    @property
    def reward(self) -> str:
        """The name of its reward in tables."""
        if self.role == "baseline":
            return "dense" if self.group == "baseline" else f"dense {self.group}"
        if self.role == "q_function":
            return "iqlearn" if self.group == "q_function" else self.group
        return "Q - V'" if self.gamma == 1.0 else f"Q - {self.gamma:g} V'"


def judged_models(args: Any) -> list[Judged]:
    """The models that the flags name, checked: they exist, are whole, differ, and share one tokenizer with EOS.

    Raises:
        UserError: as `check_model`; a label used twice; a folder without a baseline is no error, but said.
    """
    from ...inputs.models import check_model, check_shared_tokenizer, load_tokenizer
    from ...scorers.checks import check_different_checkpoints, check_tokenizer_has_eos
    from ...scorers.markers import find_baseline, read_marker

    sft = args.model_name_or_path
    config = check_model(sft, trust_remote_code=args.trust_remote_code)
    models = [Judged(SFT, sft, "sft", SFT, _gamma(args, sft), config)]
    entries = [(_entry(value, "--baseline"), "baseline") for value in args.baseline]
    entries += [(_entry(value, "--q_function"), "q_function") for value in args.q_function]
    if not args.baseline:
        try:
            entries.insert(0, (("", str(find_baseline(sft))), "baseline"))
        except UserError:
            if read_marker(sft).get("role") != "iqlearn":
                print(f"No baseline in {sft}: no dense reward is judged; name an earlier checkpoint with --baseline.")
    unnamed = {role: sum(r == role and not label for (label, _), r in entries) for _, role in entries}
    tokenizer = load_tokenizer(sft, trust_remote_code=args.trust_remote_code)
    check_tokenizer_has_eos(tokenizer, sft)
    for number, ((label, paths), role) in enumerate(entries):
        group = label or (role if unnamed[role] == 1 else f"{role}{number + 1}")
        names = [name.strip() for name in paths.split(",") if name.strip()]
        if not names:
            raise UserError(f"--{role}: no checkpoint in {paths!r}; write label=folder, or the folder alone")
        if role == "q_function" and len(names) > 1:
            raise UserError(f"--q_function {paths}: one model each; only baselines are averaged")
        for place, name in enumerate(names):
            config = check_model(name, f"--{role}", args.trust_remote_code)
            if role == "baseline":
                check_different_checkpoints(sft, name)
            check_shared_tokenizer(tokenizer, sft, name, args.trust_remote_code)
            own = group if len(names) == 1 else f"{group}.{place + 1}"
            models.append(Judged(own, name, role, group, _gamma(args, name), config))
    labels = [model.label for model in models]
    rewards = [model.reward for model in models if model.label in (model.group, f"{model.group}.1")]
    twice = next((name for names in (labels, rewards) for name in names if names.count(name) > 1), None)
    if twice:
        raise UserError(f"two models have the label {twice!r}; give each its own: --baseline early=.. half=..")
    return models


def _entry(value: str, flag: str) -> tuple[str, str]:
    """`label=path` or `path` -> (label or "", path)."""
    found = None if Path(value).expanduser().exists() else _LABELLED.fullmatch(value)
    label, path = found.groups() if found else ("", value)
    if label in (SFT, "dense", "random", "length", "log-likelihood"):
        raise UserError(f"{flag} {value}: the label {label!r} has its own meaning; choose another")
    return label, path


def _gamma(args: Any, path: str) -> float:
    from ...scorers.markers import read_marker

    return float(read_marker(path).get("gamma", 1.0)) if args.gamma is None else float(args.gamma)


@dataclass(frozen=True)
class Pair:
    """An answer as ids, ready to be scored."""

    prompt_ids: tuple[int, ...]
    ids: tuple[int, ...]


def read_models(models: Sequence[Judged], tokenizer: Any, items: Sequence[Pair], args: Any) -> dict[str, Any]:
    """Q - gamma V' and log pi of every token of every answer, by every model, one model in memory at a time.

    They are kept in `<output_dir>/scores/<label>.jsonl`: a run that is resumed reads what is there.

    Returns:
        label -> (list of Q - gamma V' per answer, list of log pi per answer), float64 arrays.

    Raises:
        UserError: `--resume` in a folder of other answers or models.
        KeyboardInterrupt: Ctrl-C, with what to type.
    """
    folder = Path(args.output_dir).expanduser()
    _check_settings(folder, models, items, args)
    found = {}
    for model in models:
        path = folder / "scores" / f"{model.label}.jsonl"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            chunks = Chunks(str(path), {}, Path(f"{path}.unfinished.json").is_file())
            with _stoppable(args):
                _read(model, tokenizer, items, args, chunks)
            chunks.finish()
        found[model.label] = _load(path)
    return found


def _check_settings(folder: Path, models: Sequence[Judged], items: Sequence[Pair], args: Any) -> None:
    """Write what the scores depend on, or compare with what is there."""
    from ...inputs.fingerprints import model_fingerprint

    digest = hashlib.sha256(json.dumps([[item.prompt_ids, item.ids] for item in items]).encode()).hexdigest()
    settings = {"answers": digest, "dtype": args.dtype}
    settings |= {f"model {m.label}": {"gamma": m.gamma, **model_fingerprint(m.path, m.config)} for m in models}
    path = folder / "scores" / "settings.json"
    if path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        different = [name for name in settings if name in old and old[name] != settings[name]]
        if different:
            what = "other answers (data, planting, seed)" if different[0] == "answers" else f"another {different[0]}"
            raise UserError(f"--resume: the scores in {folder} are of {what}; leave the flag out, or choose a folder")
        settings = old | settings
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


@contextmanager
def _stoppable(args: Any) -> Iterator[None]:
    """Ctrl-C says how to go on."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"The same command with --resume goes on in {args.output_dir}.") from error


def _read(model: Judged, tokenizer: Any, items: Sequence[Pair], args: Any, chunks: Chunks) -> None:
    from ...scorers import QFunctionReward

    loading = {"device": args.device, "dtype": args.dtype, "trust_remote_code": args.trust_remote_code}
    scorer = QFunctionReward.from_checkpoint(
        model.path, tokenizer=tokenizer, kind="bellman", gamma=model.gamma, **loading
    )
    size = CHUNK * args.batch_size
    for part in in_chunks(len(items), size, chunks.chunks_done, f"Scoring with {model.label}", "answer"):
        some = items[part.start : part.stop]
        scores = scorer.score_ids([i.prompt_ids for i in some], [i.ids for i in some], batch_size=args.batch_size)
        chunks.write({"q_minus_v": s.rewards.tolist(), "log_prob": s.ref_log_prob.tolist()} for s in scores)


def _load(path: Path) -> tuple[list[Any], list[Any]]:
    import numpy as np

    residuals, log_probs = [], []
    with open(path, encoding="utf-8") as stream:
        for line in stream:
            record = json.loads(line)
            residuals.append(np.array(record["q_minus_v"], dtype=float))
            log_probs.append(np.array(record["log_prob"], dtype=float))
    return residuals, log_probs


def rewards_of(models: Sequence[Judged], read: dict[str, Any], rows: Sequence[int]) -> dict[str, list[Any]]:
    """Token rewards by name, of the answers `rows`: dense rewards, IQLearn's, the SFT model's own Q - gamma V', log pi.

    The dense reward is log pi_SFT - log pi_baseline; several baselines of one reward are averaged in log space, as
    `inverselm score` does. `log pi` of the SFT model comes last: it is the control.
    """
    log_pi = read[SFT][1]
    rewards: dict[str, list[Any]] = {}
    for name in dict.fromkeys(model.reward for model in models if model.role == "baseline"):
        of_reward = [read[model.label][1] for model in models if model.reward == name]
        rewards[name] = [log_pi[i] - sum(log_probs[i] for log_probs in of_reward) / len(of_reward) for i in rows]
    for model in [*(m for m in models if m.role == "q_function"), models[0]]:
        rewards[model.reward] = [read[model.label][0][i] for i in rows]
    rewards[LOG_PI] = [log_pi[i] for i in rows]
    return rewards
