"""`inverselm sft` and `inverselm iqlearn`: TRL's SFT, and IQLearn in its place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trl import ModelConfig, SFTTrainer, get_peft_config, get_quantization_config

from ...errors import UserError
from ...inputs.models import check_model, check_packages, load_tokenizer, positions_of
from ...scorers.checks import check_tokenizer_has_eos
from ...scorers.markers import BASELINE_FOLDER, write_marker
from ...training.iqlearn import IQLearnTrainer
from ...training.online import OnlineIQLearnTrainer
from ...training.scratch import build_from_scratch, texts_of
from ...training.seq2seq import Seq2SeqIQLearnTrainer
from ..arguments import Help, parse
from ..common import (
    check_chat_template,
    check_run_folder,
    clear_run_folder,
    lengths_line,
    load_checked,
    load_eval,
    quiet_libraries,
    say,
    shell,
    train,
)
from . import seq2seq
from .baselines import (
    BaselineArguments,
    add_baselines,
    baseline_facts,
    baseline_lines,
    check_baselines,
    check_steps,
    kept_baselines,
    set_late_baselines_aside,
)
from .losses import HIDDEN, IQLearnFlags, SFTFlags

COMMON = (
    *("model_name_or_path", "output_dir", "learning_rate", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "packing", "completion_only_loss"),
    *("assistant_only_loss", "use_peft", "lora_r", "eval_strategy", "save_steps", "logging_steps", "bf16", "seed"),
    *("resume_from_checkpoint", "dataset_train_split", "dataset_test_split"),
)
GUIDES = {
    "sft": Help(
        "Supervised fine-tuning with TRL's SFTTrainer. Half-way through it keeps a baseline checkpoint, so that the "
        "run contains a dense token reward (arXiv 2510.02493) for `inverselm score` and `inverselm dpr`.\n"
        "Rows are TRL's formats: {prompt, completion}, {messages} or {text}. --loss_type dft and gem are other losses "
        "on the same data, peers to compare with.",
        (
            "inverselm sft --model_name_or_path Qwen/Qwen3-0.6B --dataset_name train.jsonl --output_dir runs/sft",
            "inverselm sft --scratch_config tiny.yaml --dataset_name train.jsonl --output_dir runs/sft",
            "inverselm sft --config recipe.yaml --loss_type gem --output_dir runs/gem",
            "inverselm sft --config recipe.yaml --learning_rate 1e-4",
        ),
        COMMON,
        HIDDEN["sft"],
    ),
    "iqlearn": Help(
        "Inverse soft-Q-learning as temporal-difference-regularised maximum likelihood (arXiv 2409.01369): the loss is "
        "-log pi + td_coef (Q - gamma V')^2. Everything else is as in `inverselm sft`; td_coef 0 is SFT. With --mix_in "
        "the squared term is also taken over answers that the policy samples to the same prompts (online).",
        (
            "inverselm iqlearn --model_name_or_path MODEL --dataset_name train.jsonl --output_dir runs/iq",
            "inverselm iqlearn --config recipe.yaml --td_coef 0.5 --mle_warmup_steps 200 --td_anneal_steps 200",
            "inverselm iqlearn --config recipe.yaml --mix_in 0.1 --max_completion_length 128 --output_dir runs/online",
        ),
        COMMON,
        HIDDEN["iqlearn"],
    ),
}


def run(command: str, argv: Sequence[str]) -> None:
    """Parse, check, train, save, and say what was written and what to do next."""
    encoder_decoder = seq2seq.names_encoder_decoder(argv)
    guide, config_class = GUIDES[command], SFTFlags if command == "sft" else IQLearnFlags
    if encoder_decoder:
        seq2seq.check_flags(command, argv)
        guide, config_class = replace(guide, hidden=seq2seq.HIDDEN[command]), seq2seq.FLAGS[command]
    data, training, model_args = parse(command, (BaselineArguments, config_class, ModelConfig), argv, guide)
    quiet_libraries()
    source = model_args.model_name_or_path
    _check_flags(data, training, model_args)
    online = not encoder_decoder and bool(getattr(training, "mix_in", 0.0))
    multiple = training.rollout_every if online else 1
    resume = check_run_folder(training, data.overwrite_output_dir, [source], multiple)
    if encoder_decoder:
        seq2seq.check_loading(model_args)
    if source:
        config = check_model(source, trust_remote_code=training.trust_remote_code)
        tokenizer = load_tokenizer(source, model_args.model_revision, training.trust_remote_code)
        check_tokenizer_has_eos(tokenizer, source)
    text_field, eos = training.dataset_text_field, tokenizer.eos_token if source else None
    rows, found = load_checked(data, "demonstrations", text_field, eos=eos)
    if encoder_decoder:
        seq2seq.check_rows(found, data.dataset_name)
    held_out = load_eval(data, training, "demonstrations", text_field, eos)
    check_steps(data, training, rows)
    if source:
        model = source
        training.model_init_kwargs = _loading(training, model_args)
    else:
        texts = texts_of(rows, text_field=text_field)
        model, tokenizer = build_from_scratch(
            data.scratch_config, texts, seed=training.seed, max_length=training.max_length
        )
        if resume:  # the run's own tokenizer, should the data have changed since
            tokenizer = load_tokenizer(resume)
    if not training.chat_template_path:
        hint = "pass " + "--chat_template_path, or " * (not encoder_decoder) + "a model with one"
        check_chat_template(tokenizer, found, data.dataset_name, hint)
        if not data.dataset_streaming:
            say(
                seq2seq.lengths_line(tokenizer, rows, training, config)
                if encoder_decoder
                else lengths_line(tokenizer, rows, found, training)
            )
    if training.use_cpu:
        say(f"Training on the CPU in {'bfloat16' if training.bf16 else 'float32'}.")
    clear_run_folder(training, data.overwrite_output_dir)
    more: dict[str, Any] = {} if encoder_decoder else {"quantization_config": get_quantization_config(model_args)}
    plain = command == "sft" and training.objective == "iqlearn"
    decoder_only: Any = SFTTrainer if plain else OnlineIQLearnTrainer if online else IQLearnTrainer
    trainer_class: Any = Seq2SeqIQLearnTrainer if encoder_decoder else decoder_only
    trainer: Any = trainer_class(
        model=model,
        args=training,
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=get_peft_config(model_args),
        **more,
    )
    add_baselines(trainer, data)
    train(trainer, resume)
    trainer.save_model(training.output_dir)
    trainer.save_state()
    late = set_late_baselines_aside(trainer, data)
    baselines = kept_baselines(training.output_dir, data)
    if trainer.accelerator.is_main_process:
        facts = {"steps": trainer.state.global_step, "base": source}
        if command == "iqlearn":
            facts |= {"td_coef": training.td_coef, "gamma": training.gamma}
            facts |= {"mix_in": training.mix_in} if online else {}
        elif training.objective != "iqlearn":
            facts["loss_type"] = training.objective
            facts |= {"gem_temperature": training.gem_temperature} if training.objective == "gem" else {}
        if training.load_best_model_at_end:
            facts["best_step"] = trainer.state.best_global_step
        write_marker(training.output_dir, command, **facts, **baseline_facts(baselines))
    wrote = f"Wrote {training.output_dir}: the model and its tokenizer."
    say("\n".join([wrote, *baseline_lines(training.output_dir, baselines), *late]))
    kept, positions = BASELINE_FOLDER in baselines, positions_of(trainer.model.config)
    say(_closing(command, training.output_dir, data, kept, positions, dpr=kept and not encoder_decoder))
    trainer.end()


def _check_flags(data: Any, training: Any, model_args: Any) -> None:
    if bool(data.scratch_config) == bool(model_args.model_name_or_path):
        raise UserError("pass either --model_name_or_path <model> or --scratch_config <yaml>")
    if data.scratch_config and model_args.use_peft:
        raise UserError("--use_peft: an adapter of random weights is of no use; leave it out with --scratch_config")
    check_baselines(data, training)
    check_packages(model_args, training)


def _loading(training: Any, model_args: Any) -> dict[str, Any]:
    return {
        "revision": model_args.model_revision,
        "trust_remote_code": training.trust_remote_code,
        "attn_implementation": model_args.attn_implementation,
        "dtype": model_args.dtype,
        **(training.model_init_kwargs or {}),
    }


def _closing(command: str, folder: str, data: Any, kept: bool, positions: int | None, *, dpr: bool) -> str:
    model = ("--model_name_or_path", folder, "--dataset_name")
    short = [positions // 2] if positions is not None and positions < 1024 else []  # the defaults would not fit
    lines = ["Next:"]
    if kept or command == "iqlearn":
        lines.append(shell("score", *model, data.dataset_name, "--html", "heatmap.html"))
    answers = ("--output_file", "answers.jsonl", *(x for n in short for x in ("--max_new_tokens", n)))
    lines.append(shell("generate", *model, "<prompts>", *answers))
    if command == "sft" and dpr:
        length = (x for n in short for x in ("--max_completion_length", n))
        lines.append(shell("dpr", *model, data.dataset_name, "--output_dir", "runs/dpr", *length))
    return "\n".join(lines)
