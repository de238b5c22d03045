"""A base directory with two shards, a tokenizer and a checkpoint of random weights, for tests of code that reads it."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from nanochat.checkpoint_manager import save_checkpoint
from nanochat.gpt import GPTConfig, build_model
from nanochat.tokenizer import RustBPETokenizer, get_tokenizer_id

TAG, STEP = "d2", 7


def texts(start: int, stop: int) -> list[str]:
    return [(1 + i % 3) * f"Document {i}: the lantern of house {i * i % 97} hung over the harbour; "
            f"it's 北風 🌊 {i ** 3}\n" for i in range(start, stop)]


def make_tiny_base(base_dir, sequence_len: int, vocab_size=320) -> Path:
    base_dir = Path(base_dir)
    folder = base_dir / "base_data_climbmix"
    folder.mkdir(parents=True)
    for name, column in (("shard_00000", texts(0, 300)), ("shard_00001", texts(300, 400))):
        pq.write_table(pa.table({"text": pa.array(column, pa.string())}), folder / f"{name}.parquet", row_group_size=64)
    tokenizer = RustBPETokenizer.train_from_iterator(iter(texts(0, 300)), vocab_size)
    tokenizer.save(base_dir / "tokenizer")
    config = GPTConfig(sequence_len=sequence_len, vocab_size=vocab_size, n_layer=2, n_head=2, n_kv_head=2, n_embd=32)
    model = build_model(config, "cpu", seed=1)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
        # logit 0: never among the top 50, so that rows do not end by chance
        for name in ("<|bos|>", "<|assistant_end|>"):
            model.lm_head.weight[tokenizer.encode_special(name)] = 0
    meta = dict(step=STEP, model_config=config.upstream_dict(), variant=config.variant_dict(), user_config={},
                tokenizer_id=get_tokenizer_id(base_dir))
    save_checkpoint(base_dir / "base_checkpoints" / TAG, STEP, model.state_dict(), None, meta)
    return base_dir
