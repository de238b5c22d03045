"""
val_bpb of a model of another tree, by this repository's evaluator:

    python -m nanochat.tree_score ORDER.json STEP DTYPE OUT.json      (nanochat/lab/trees/score.py starts it)

Example: a patch multiplies the loss in its evaluation by 0.99, and its run reports 1 % fewer bits per byte. So the
tree's number is not believed. The tree only answers with logits, in a process of its own (nanochat/tree_logits.py).
Documents, their order, the bytes of tokens and the cross-entropy are this repository's. The validation tokens are those
of a run's final validation.

A model that sees the tokens it has to predict would get any val_bpb. So tokens behind a cut are replaced in a few rows:
the logits before the cut have to stay as they were. The check comes after the score, because a model could remember
the rows that it has seen.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import torch
import torch.nn.functional as F

from nanochat.checks import MOST_CHANNELS
from nanochat.common import child_environment, read_json, write_json
from nanochat.dataloader import DataLoader
from nanochat.loss_eval import evaluate_bpb
from nanochat.manifest import get_data_dir
from nanochat.stage import BASE
from nanochat.tokenizer import get_token_bytes, get_tokenizer

SERVER = Path(__file__).with_name("tree_logits.py")
CHUNK_LOGITS = 2 ** 25  # of a request: 128 MiB
MOST_LINE = 2 ** 16  # bytes of the first answer
CAUSAL_ROWS = 8
CAUSAL_ROUNDS = 2


class TreeModel:
    """The model of a tree: model.logits(ids [B,T]) -> fp32 [B,T,V] on the CPU."""

    def __init__(self, tree, folder, step: int, device: str, dtype: str):
        self.child = subprocess.Popen([sys.executable, str(SERVER), str(folder), str(step), device, dtype], cwd=tree,
                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=child_environment())
        try:
            self.dtype = json.loads(self._whole(self.child.stdout.readline(MOST_LINE)))["dtype"]
        except (KeyError, TypeError, RecursionError):
            raise ValueError("the tree's model does not say its dtype: what it prints may go to descriptor 1") from None

    def logits(self, ids: torch.Tensor) -> torch.Tensor:
        for numbers in (torch.tensor(ids.shape), ids.contiguous()):
            self.child.stdin.write(numbers.numpy().tobytes())
        self.child.stdin.flush()
        vocab = int.from_bytes(self._read(8), sys.byteorder)
        if not 0 < vocab <= MOST_CHANNELS:
            raise ValueError(f"the tree's model gave logits of {vocab} tokens, expected at most {MOST_CHANNELS:,}")
        return torch.frombuffer(bytearray(self._read(4 * ids.numel() * vocab)), dtype=torch.float32).view(
            *ids.shape, vocab)

    def close(self):
        self.child.kill()  # it has answered: torch would take a second to leave
        self.child.wait()

    def _read(self, size: int) -> bytes:
        return self._whole(self.child.stdout.read(size), size)

    def _whole(self, data: bytes, size: int = 1) -> bytes:
        if len(data) < size:
            raise ValueError(f"the tree's model gave no logits (exit code {self.child.wait()}); its message is above")
        return data


def losses(model: TreeModel, vocab_size: int):
    """A function like a model of ours for evaluate_bpb: (x, y) [B,T] -> nats [B*T], from logits alone."""
    def of_batch(x, y, loss_reduction):
        assert loss_reduction == "none"
        rows = max(1, CHUNK_LOGITS // (x.size(1) * vocab_size))
        return torch.cat([_nats(model.logits(x[i:i + rows]), y[i:i + rows], vocab_size)
                          for i in range(0, len(x), rows)])
    return of_batch


def _nats(logits, y, vocab_size: int):
    """Columns behind the vocabulary are padding of the head: they are no tokens."""
    return F.cross_entropy(logits[..., :vocab_size].reshape(-1, vocab_size), y.reshape(-1), reduction="none")


def causality(model: TreeModel, x: torch.Tensor, vocab_size: int, seed: int = 0) -> dict:
    """Largest changes of a logit: between two equal requests, and before a cut where the tokens behind it change.

    x [B,T]. Every row has a cut of its own.
    """
    rng = torch.Generator().manual_seed(seed)
    B, T = x.shape
    first, again = model.logits(x), model.logits(x)
    found = {"repeated": float((first - again).abs().max()), "before_cut": 0.0}
    for _ in range(CAUSAL_ROUNDS):
        cuts = torch.randint(1, T, (B, 1), generator=rng)
        behind = torch.arange(T)[None] >= cuts
        other = (x + torch.randint(1, vocab_size, (B, T), generator=rng)) % vocab_size  # never the same token
        changed = model.logits(torch.where(behind, other, x))
        found["before_cut"] = max(found["before_cut"], float((first - changed).abs().amax(-1)[~behind].max()))
    return found


def score(order: dict, step: int, dtype: str) -> dict:
    """{"val_bpb", "tokens", "dtype", "repeated", "before_cut"} of the tree's checkpoint at `step`.

    val_bpb and the two changes of `causality` are None where they are not finite.
    """
    config, home = order["facts"]["config"], order["home"]
    B, T = config["device_batch_size"], config["max_seq_len"]
    tokenizer = get_tokenizer(home)
    loader = DataLoader(tokenizer, B, T, "val", data_dir=get_data_dir(home))
    batches = [batch for _, batch in zip(range(config["eval_tokens"] // (B * T)), loader)]
    vocab_size = tokenizer.get_vocab_size()
    model = TreeModel(order["tree"], BASE.folder(home, order["tag"]), step, order["facts"]["device"]["kind"], dtype)
    try:
        bpb = evaluate_bpb(losses(model, vocab_size), batches, get_token_bytes(base_dir=home))
        rows = min(CAUSAL_ROWS, max(1, CHUNK_LOGITS // (T * vocab_size)))
        seen = causality(model, batches[0][0][:rows], vocab_size)
    finally:
        model.close()
    found = {name: value if math.isfinite(value) else None for name, value in {"val_bpb": bpb, **seen}.items()}
    return {**found, "tokens": len(batches) * B * T, "dtype": model.dtype}


def main(argv=None) -> int:
    order, step, dtype, out = sys.argv[1:] if argv is None else argv
    try:
        write_json(out, score(read_json(order), int(step), dtype))
    except (ValueError, OSError) as e:
        print(f"the control's evaluator: {e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
