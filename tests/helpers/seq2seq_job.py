"""A small encoder-decoder run that a test also starts as two processes: `python -m helpers.seq2seq_job FOLDER`."""

from __future__ import annotations

import json
import os
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

from helpers.seq2seq import dataset, questions, t5_for, t5_tokenizer
from helpers.training import arguments, steps
from inverselm.training.seq2seq import Seq2SeqIQLearnConfig, Seq2SeqIQLearnTrainer


def global_batch(folder: Path) -> Any:
    """The same 8 rows at each step, however many processes there are."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    args = arguments(
        Seq2SeqIQLearnConfig, folder, td_coef=0.5, gamma=0.9, mle_warmup_steps=0, td_anneal_steps=2, max_steps=3,
        per_device_train_batch_size=8 // world, learning_rate=0.01,
    )  # fmt: skip
    tokenizer = t5_tokenizer()
    return Seq2SeqIQLearnTrainer(
        t5_for(tokenizer), args=args, train_dataset=dataset(questions()), processing_class=tokenizer
    )


def main() -> None:
    """Two processes, forked: what takes long is importing."""
    folder = Path(sys.argv[1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = [os.fork() or _child(folder, rank, port) for rank in ("0", "1")]
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))


def _child(folder: Path, rank: str, port: str) -> int:
    os.environ.update(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    code = 1
    try:
        trainer = global_batch(folder)
        trainer.train()
        if trainer.accelerator.is_main_process:
            found = {"steps": steps(trainer), "world": trainer.accelerator.num_processes}
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "steps.json").write_text(json.dumps(found))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
