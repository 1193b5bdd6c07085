"""What `rerank` and `filter` share: rows as they stand in their file, and the token rewards of each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import UserError
from ..output import Chunks, in_chunks

if TYPE_CHECKING:
    from ...scorers import ScoredCompletion

CHUNK = 32  # batches between two saves
WORDS = {"log_ratio": "log pi_SFT - log pi_baseline", "bellman": "Q - gamma V'", "log_prob": "log pi"}


@dataclass
class AnswerRow:
    """An answer of the data.

    Attributes:
        where: its file and line, for messages.
        record: its own columns, unchanged.
        prompt: text or messages.
        completion: text or messages.
        pair: the ids that are scored; None where there are none, or too many.
        why: "" or why there are none: "no token", "too long".
    """

    where: str
    record: dict[str, Any]
    prompt: Any
    completion: Any
    pair: Any = None
    why: str = ""

    @property
    def key(self) -> str:
        """Equal for equal prompts."""
        return text_key(self.prompt)


def text_key(value: Any) -> str:
    """A text or messages as one text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)


def check_reward_flags(args: Any) -> None:
    """Flags of the reward, alone.

    Raises:
        UserError: they do not go together.
    """
    if not args.dataset_name:
        raise UserError("no data: pass --dataset_name <rows with prompt and completion>")
    if args.baseline and args.reward not in ("auto", "log_ratio"):
        raise UserError(f"--baseline has no part in --reward {args.reward}; drop one of them")
    if not 0.0 <= args.gamma <= 1.0:
        raise UserError(f"--gamma is {args.gamma}; set it between 0 and 1")


def read_rows(args: Any, config: Any, *, sampled: bool = False, max_length: int | None = None) -> list[AnswerRow]:
    """The rows of `--dataset_name`, as ids. Of `messages` the last one is the completion.

    Args:
        args: flags of the command.
        config: of the model: how many positions it has.
        sampled: rows may be what `generate` wrote: empty answers are possible, and sampled ids are scored as they are.
        max_length: rows with more tokens are too long.

    Raises:
        UserError: missing columns, unusable rows, no chat template.
    """
    from ...inputs.data import LINE_COLUMN, check_demonstrations, load_rows
    from ...inputs.models import load_tokenizer
    from ..common import check_chat_template
    from ..evaluation.rewards_data import Coder

    name = args.dataset_name
    rows = load_rows(name, split=args.dataset_split)
    sampled = sampled and "finished" in rows.column_names
    found = check_demonstrations(rows, name, need="answers", allow_empty=sampled)
    tokenizer = load_tokenizer(args.model_name_or_path, None, args.trust_remote_code)
    check_chat_template(tokenizer, found, name)
    coder = Coder(tokenizer, config)
    originals = _originals(rows[LINE_COLUMN]) if LINE_COLUMN in rows.column_names else {}
    out = []
    for number, row in enumerate(rows, 1):
        where = row.pop(LINE_COLUMN, None) or f"{name}: row {number}"
        prompt, completion = _split(row, where) if found == "messages" else (row["prompt"], row["completion"])
        answer = AnswerRow(where, originals.get(where, row), prompt, completion)
        ends = {"finished": row["finished"], "token_ids": row.get("token_ids")} if sampled else {}
        pair = coder.sampled({"prompt": prompt, "completion": completion, **ends})
        if not pair.ids:
            answer.why = "no token"
        elif not coder.fits(pair) or (max_length and len(pair.prompt_ids) + len(pair.ids) > max_length):
            answer.why = "too long"
        else:
            answer.pair = pair
        out.append(answer)
    if all(answer.why for answer in out):
        raise UserError(f"{name}: no row can be scored: {out[0].where} is {out[0].why.replace('no', 'without a')}")
    return out


def score_rows(
    args: Any, kind: str, baselines: list[str], rows: Sequence[AnswerRow], path: Path, resume: bool
) -> list[ScoredCompletion]:
    """Token rewards of the rows that can be scored, in their order.

    They are written to `path` as they come: a run that was stopped goes on there with `resume`.

    Raises:
        UserError: `resume` with other settings or data.
        KeyboardInterrupt: Ctrl-C, with what to type.
    """
    from .score import load_scorer

    items = [row for row in rows if row.pair is not None]
    settings = {name: getattr(args, name) for name in ("model_name_or_path", "gamma", "dataset_name", "dataset_split")}
    settings |= {"reward": kind, "baselines": baselines, "rows": len(items), "batch_size": args.batch_size}
    ids = hashlib.sha256(
        "\n".join(f"{i.pair.prompt_ids} {i.pair.ids}" for i in items).encode()
    )  # the answers themselves
    settings["answers"] = ids.hexdigest()
    chunks = Chunks(str(path), settings, resume)
    with chunks.interruptible():
        scorer = load_scorer(args, kind, baselines)
        for part in in_chunks(len(items), CHUNK * args.batch_size, chunks.chunks_done, "Scoring", "answer"):
            pairs = [items[i].pair for i in part]
            scores = scorer.score_ids([p.prompt_ids for p in pairs], [p.ids for p in pairs], batch_size=args.batch_size)
            chunks.write({"rewards": s.rewards.tolist()} for s in scores)
    stored = [record["rewards"] for record in chunks.records()]
    chunks.finish()
    import torch

    return [scorer._scored(list(i.pair.ids), torch.tensor(r)) for i, r in zip(items, stored, strict=True)]


def _originals(places: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows of JSON and CSV files as they are written there, by "file: line 17"."""
    from ...inputs.records import read_records

    files = dict.fromkeys(where.rpartition(": line ")[0] for where in places if ": line " in where)
    return {where: record for file in files for where, record in read_records(Path(file))}


def _split(row: dict[str, Any], where: str) -> tuple[Any, Any]:
    talk = row.get("messages") or row["conversations"]
    talk = [{"role": m["from"], "content": m["value"]} if "from" in m else m for m in talk]
    if len(talk) < 2:
        raise UserError(f"{where}: a conversation of one message has no prompt; remove the row")
    return talk[:-1], talk[-1:]
