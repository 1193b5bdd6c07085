from ..cli.preflight import check_different_checkpoints, check_same_tokenizer, check_tokenizer_has_eos
