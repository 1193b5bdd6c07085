"""Bad input: exit code 2, one line that says what is wrong and where, and nothing written."""

import shlex

import pytest

from inverselm.cli.main import main

SCRATCH = "--scratch_config tiny.yaml --max_length 64 --max_steps 4 --output_dir new"
DPR = "dpr --output_dir new --max_steps 2 --max_completion_length 8"
SCORE = "score --model_name_or_path sft"
ONE = "--prompt 'What is 2+3?' --completion ' 5.'"
GENERATE = "generate --model_name_or_path sft --max_new_tokens 8"

CASES = [
    # the data
    (f"sft {SCRATCH}", "no data: pass --dataset_name"),
    (f"sft {SCRATCH} --dataset_name columns.jsonl", "'question', 'answer'; rename 'question' to 'prompt'"),
    (f"sft {SCRATCH} --dataset_name empty.jsonl", "empty.jsonl: line 2: 'completion' is empty"),
    (
        "sft --model_name_or_path sft --max_length 64 --output_dir new --dataset_name eos.jsonl",
        "line 2|only the end",
    ),
    (f"sft {SCRATCH} --dataset_name blank_prompt.jsonl", "line 2: 'prompt' is empty"),
    (f"sft {SCRATCH} --dataset_name number.jsonl", "line 1: 'completion' is int"),
    (f"sft {SCRATCH} --dataset_name broken.jsonl", "broken.jsonl: line 2: not valid JSON"),
    (f"sft {SCRATCH} --dataset_name latin.csv", "latin.csv: line 2: not UTF-8"),
    (f"iqlearn {SCRATCH} --dataset_name broken.parquet", "not a readable Parquet file"),
    (f"sft {SCRATCH} --dataset_name none.jsonl", "none.jsonl: no such file"),
    (f"sft {SCRATCH} --dataset_name an/unknown", "an/unknown: not a local file or folder, and not loadable"),
    (f"sft {SCRATCH} --dataset_name messages.jsonl", "messages.jsonl: the rows are conversations|--chat_template_path"),
    (f"sft {SCRATCH} --dataset_name sums.jsonl --max_length 3", "in all 24 rows the prompt alone fills max_length=3"),
    (f"sft {SCRATCH} --dataset_name sums.jsonl --eval_strategy steps", "--eval_dataset_name"),
    # flags and files
    ("sft --dataset_name sums.jsonl", "either --model_name_or_path <model> or --scratch_config <yaml>"),
    ("sft --scratch_config tiny.yaml --model_name_or_path sft --dataset_name sums.jsonl", "either"),
    (f"sft {SCRATCH} --dataset_name sums.jsonl --use_peft", "--use_peft"),
    (f"sft {SCRATCH} --dataset_name sums.jsonl --baseline_fraction 1", "--baseline_fraction is 1.0"),
    (f"sft {SCRATCH} --dataset_name sums.jsonl --max_steps 1", "one optimiser step|--baseline_fraction 0"),
    (f"sft {SCRATCH} --dataset_name sums.jsonl --output_dir sft", "not empty; pass --overwrite_output_dir"),
    (f"sft {SCRATCH} --dataset_name sums.jsonl --output_dir file", "--output_dir file: is a file"),
    (f"sft {SCRATCH} --dataset_name sums.jsonl --resume_from_checkpoint True", "new holds no checkpoint-* folder"),
    (f"sft {SCRATCH} --dataset_name sums.jsonl --resume_from_checkpoint none5", "none5: no such folder"),
    (f"sft {SCRATCH} --dataset_name sums.jsonl --scratch_config none.yaml", "none.yaml: cannot be read"),
    (f"sft {SCRATCH} --dataset_name sums.jsonl --scratch_config list.yaml", "list.yaml|is not a mapping"),
    (f"iqlearn {SCRATCH} --dataset_name sums.jsonl --td_coef -1", "td_coef must be >= 0"),
    (
        "sft --model_name_or_path sft --dataset_name sums.jsonl --output_dir sft --overwrite_output_dir",
        "the run reads sft in it",
    ),
    # models
    ("sft --model_name_or_path ./none --dataset_name sums.jsonl --output_dir new", "./none: no such folder"),
    ("sft --model_name_or_path none --dataset_name sums.jsonl --output_dir new", "no such folder, and not loadable"),
    ("sft --model_name_or_path corrupt --dataset_name sums.jsonl --output_dir new", "model.safetensors is damaged"),
    ("sft --model_name_or_path noweights --dataset_name sums.jsonl --output_dir new", "no weights in safetensors"),
    ("sft --model_name_or_path file --dataset_name sums.jsonl --output_dir new", "is a file"),
    ("sft --model_name_or_path noeos --dataset_name sums.jsonl --output_dir new", "no end-of-sequence token"),
    # dpr
    ("dpr --dataset_name sums.jsonl", "no model: pass --model_name_or_path"),
    (f"{DPR} --model_name_or_path sft --dataset_name messages.jsonl", "needs the column 'prompt'|all but the last"),
    (f"{DPR} --model_name_or_path sft --dataset_name talk.jsonl", "no chat template"),
    (f"{DPR} --model_name_or_path nobase --dataset_name sums.jsonl", "No baseline found in nobase|--baseline"),
    (f"{DPR} --model_name_or_path samew --dataset_name sums.jsonl", "hold identical weights"),
    (f"{DPR} --model_name_or_path sft --baseline sft --dataset_name sums.jsonl", "are the same, sft"),
    (f"{DPR} --model_name_or_path othertok --dataset_name sums.jsonl", "have different tokenizers: the token"),
    (f"{DPR} --model_name_or_path noeos --dataset_name sums.jsonl", "no end-of-sequence token"),
    (f"{DPR} --model_name_or_path sft --baseline ./none --dataset_name sums.jsonl", "--baseline ./none: no such"),
    (f"{DPR} --model_name_or_path sft --policy corrupt --dataset_name sums.jsonl", "--policy corrupt|damaged"),
    (f"{DPR} --model_name_or_path sft --dataset_name sums.jsonl --max_completion_length 96", "shortest prompt has"),
    (f"{DPR} --model_name_or_path sft --dataset_name sums.jsonl --reward_floor 2", "--reward_floor is 2.0"),
    (f"{DPR} --model_name_or_path sft --dataset_name sums.jsonl --reward_clip_low 1", "--reward_clip_low must be"),
    (f"{DPR} --model_name_or_path sft --dataset_name sums.jsonl --num_generations 3", "divisible by num_generations"),
    (f"{DPR} --scratch_config tiny.yaml --dataset_name sums.jsonl", "dpr starts from an SFT run"),
    # score
    (f"{SCORE} --prompt a", "--prompt and --completion go together"),
    (SCORE, "either --dataset_name <answers>, or --prompt and --completion"),
    (f"score {ONE}", "no model: pass --model_name_or_path"),
    (f"{SCORE} --prompt ' ' --completion b", "--prompt is empty"),
    (f"{SCORE} --prompt a --completion ''", "--completion is empty"),
    (f"{SCORE} {ONE} --baseline sft", "are the same, sft"),
    (f"{SCORE} {ONE} --baseline ','", "--baseline is empty"),
    (f"{SCORE} {ONE} --reward bellman --baseline sft/baseline", "no part in --reward bellman"),
    (f"{SCORE} {ONE} --reward some", "--reward: invalid choice: 'some'"),
    (f"{SCORE} {ONE} --device cuda:99", "--device cuda:99: not available"),
    (f"score --model_name_or_path badmarker {ONE}", "inverselm.json is unreadable"),
    (f"score --model_name_or_path othertok {ONE}", "have different tokenizers"),
    (f"{SCORE} --dataset_name prompts.jsonl", "rename 'answer' to 'completion'"),
    (f"{SCORE} --dataset_name messages.jsonl", "all but the last message"),
    (f"{SCORE} --dataset_name empty.jsonl", "line 2: 'completion' is empty"),
    (f"{SCORE} --dataset_name sums.jsonl --output_file sums.jsonl --overwrite", "is the file that is read"),
    (f"{SCORE} --dataset_name sums.jsonl --output_file prompts.jsonl", "exists; pass --overwrite"),
    (f"{SCORE} --dataset_name sums.jsonl --output_file sft", "is a folder; name a file"),
    (f"{SCORE} --dataset_name sums.jsonl --html none/x.html", "its folder does not exist"),
    (f"{SCORE} --dataset_name sums.jsonl --batch_size 0", "--batch_size is 0"),
    (f"{SCORE} --dataset_name sums.jsonl --resume", "no unfinished scores.jsonl"),
    # generate
    ("generate --dataset_name prompts.jsonl", "no model: pass --model_name_or_path"),
    (GENERATE, "no prompts: pass --dataset_name"),
    (f"{GENERATE} --dataset_name messages.jsonl", "needs the column 'prompt'"),
    (f"{GENERATE} --dataset_name prompts.jsonl --metrics some", "unknown metric some; known: gsm8k"),
    (f"{GENERATE} --dataset_name prompts.jsonl --metrics gsm8k", "is not a number"),
    (f"{GENERATE} --dataset_name talk.jsonl --metrics exact_match", "is not text"),
    (f"{GENERATE} --dataset_name prompts.jsonl --metrics exact_match --reference_column b", "name it with --reference"),
    (f"{GENERATE} --dataset_name prompts.jsonl --output_file none/x.jsonl", "its folder does not exist"),
    (f"{GENERATE} --dataset_name prompts.jsonl --temperature -1", "--temperature is -1.0"),
    (f"{GENERATE} --dataset_name prompts.jsonl --num_beams 2", "needs --temperature 0"),
    (f"{GENERATE} --dataset_name prompts.jsonl --max_new_tokens 90", "lower --max_new_tokens to"),
    ("generate --model_name_or_path corrupt --dataset_name prompts.jsonl", "is damaged"),
]


def tree(folder):
    return {str(path): path.lstat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(("line", "words"), CASES, ids=[line[:100] for line, _ in CASES])
def test_bad_input_is_one_line_and_writes_nothing(line, words, desk, bench, capfd, monkeypatch):
    import transformers

    def no_weights(*args, **kwargs):
        raise AssertionError("weights were loaded before the error")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", no_weights)
    before = tree(desk) | tree(bench)
    assert main(shlex.split(line)) == 2
    out, err = capfd.readouterr()
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert err.startswith(f"inverselm {line.split()[0]}: error: ")
    for word in words.split("|"):
        assert word in err
    assert out == ""
    assert tree(desk) | tree(bench) == before
