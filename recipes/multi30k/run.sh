#!/usr/bin/env bash
# The whole study: bash recipes/multi30k/run.sh <folder with multi30k's .gz files> <work folder>
# One thread of a CPU takes about an hour and a half.
set -euo pipefail
cd "$(dirname "$0")/../.."
source=$1 work=$2
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python recipes/multi30k/prepare.py "$source" "$work"
train="$work/train.jsonl"
inverselm sft     --config recipes/multi30k/sft.yaml     --dataset_name "$train" --output_dir "$work/sft"
inverselm iqlearn --config recipes/multi30k/iqlearn.yaml --dataset_name "$train" --output_dir "$work/iqlearn"
for variant in dpr dpr_centred; do
  inverselm dpr   --config recipes/multi30k/$variant.yaml --dataset_name "$train" --output_dir "$work/$variant" \
                  --model_name_or_path "$work/sft"
done
for split in val test; do
  for temperature in 0 0.5 1; do
    for model in sft iqlearn dpr dpr_centred; do
      inverselm generate --model_name_or_path "$work/$model" --dataset_name "$work/$split.jsonl" \
        --metrics bleu chrf --temperature $temperature --max_new_tokens 64 --batch_size 128 --overwrite True \
        --output_file "$work/$split-T$temperature-$model.jsonl"
    done
    python recipes/multi30k/compare.py "$work/$split-T$temperature-"{sft,iqlearn,dpr,dpr_centred}.jsonl
  done
done
