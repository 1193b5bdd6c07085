"""Commands that train: sft, iqlearn, dpr, gail, selfplay."""
