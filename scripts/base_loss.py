"""
Mean loss and bits per byte of a base model on the training and validation split:

    python -m scripts.base_loss --model-tag d12 --split val --split-tokens 524288

The loss is plain next-token cross-entropy in nats over every target, BOS included, as in training. Bits per byte leave
out targets of no bytes, as everywhere (nanochat/loss_eval.py). Documents are read in the order of the files. If a split
has fewer tokens than --split-tokens, its documents are read more than once.

--per-position FILE also writes the mean loss by position over the validation split, with the means of blocks of text.
lab/horizon/gamma.py takes gamma from it. The text is read in chunks that start at seeded random offsets. A chunk lies
inside one document, because tokens before the end of a document are no context for the next document. The model gets
BOS and then the chunk, so that position n + 1 has n tokens of context. BOS starts every row that the model was trained
on, and says nothing about the text.
"""

import argparse
import math
import sys
from itertools import islice

from nanochat.command_line import Defaults, Parser
from nanochat.common import get_base_dir, get_dist_info, print0, write_json
from nanochat.options import flag, hyphenate
from nanochat.stage import BASE


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="base_loss", allow_abbrev=False,
                    description="Measure the mean loss and the bits per byte of a base model.",
                    formatter_class=Defaults)
    parser.add_argument("--model-tag", help="folder of the checkpoint (default: the deepest d<N>)")
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest whole one)")
    parser.add_argument("--split", choices=("train", "val", "both"), default="both", help="documents to read")
    parser.add_argument("--split-tokens", type=int, default=40 * 524288, help="tokens to read of each split")
    parser.add_argument("--device-batch-size", type=int, default=32, help="rows in a batch")
    parser.add_argument("--device-type", choices=("", "cuda", "cpu", "mps"), default="",
                        help="device to run on; empty = autodetect")
    parser.add_argument("--output-json", metavar="FILE", help="also write the results to this file")
    parser.add_argument("--per-position", metavar="FILE",
                        help="also measure the validation loss by position, and write it to this file")
    parser.add_argument("--seed", type=int, default=0, help="seed of the offsets of --per-position")
    return parser


def token_losses(model, batches):
    """Yield (targets [B,T], their losses [B,T] in nats) of each batch."""
    import torch
    for x, y in batches:
        with torch.no_grad():
            yield y, model(x, y, loss_reduction="none").view_as(y)


def summarize(losses, token_bytes) -> dict:
    """{"loss": nats per token, "bpb": bits per byte (None if no byte was seen), "tokens", "bytes"}, summed in fp64."""
    nats = counted_nats = 0.0
    tokens = num_bytes = 0
    for y, loss in losses:
        size = token_bytes[y].cpu()
        loss = loss.cpu().double()  # MPS has no fp64
        nats += loss.sum().item()
        counted_nats += (loss * (size > 0)).sum().item()
        tokens += y.numel()
        num_bytes += int(size.sum())
    bpb = counted_nats / (math.log(2) * num_bytes) if num_bytes else None
    return dict(loss=nats / tokens, bpb=bpb, tokens=tokens, bytes=num_bytes)


# -----------------------------------------------------------------------------
# By position

def read_stream(tokenizer, num_tokens: int):
    """(tokens int32 [N], lengths of their documents): whole validation documents in file order, up to num_tokens or a
    little more."""
    import numpy as np

    from nanochat.dataset import iter_texts
    documents, read, texts = [], 0, iter_texts("val")
    while read < num_tokens and (batch := list(islice(texts, 256))):
        documents += [np.array(row, dtype=np.int32) for row in tokenizer.encode(batch)]
        read += sum(map(len, documents[-len(batch):]))
    return np.concatenate(documents), np.array([len(document) for document in documents])


def chunk_rows(chunks, bos: int, device):
    """(x, y) [B,T] of chunks [B,T]: BOS and all tokens but the last, and the tokens."""
    import torch
    y = torch.from_numpy(chunks.astype("int64"))
    x = torch.cat([torch.full((len(y), 1), bos), y[:, :-1]], dim=1)
    return x.to(device), y.to(device)


def per_position(model, tokenizer, args, device) -> dict:
    """Facts of the file that --per-position names; see lab/horizon/entropy.py."""
    import numpy as np

    from nanochat.lab.horizon.entropy import BLOCKS, draw_chunks, position_facts
    stream, lengths = read_stream(tokenizer, args.split_tokens)
    width, starts = draw_chunks(lengths, model.config.sequence_len, args.split_tokens, args.seed)
    print0(f"Loss by position of {len(starts):,} chunks of {width} tokens, from {len(lengths):,} validation documents")
    rows = (chunk_rows(stream[starts[i:i + args.device_batch_size, None] + np.arange(width)],
                       tokenizer.get_bos_token_id(), device)
            for i in range(0, len(starts), args.device_batch_size))
    losses = np.concatenate([loss.cpu().double().numpy() for _, loss in token_losses(model, rows)])
    facts = position_facts(losses.reshape(BLOCKS, -1, width).mean(axis=1), len(losses))
    return facts | dict(split="val", seed=args.seed)


def check(args):
    if get_dist_info()[2] > 1:
        raise ValueError("more than one rank is not here yet: start one process, without torchrun")
    for name in ("device_batch_size", "split_tokens"):
        if getattr(args, name) < 1:
            raise ValueError(f"{flag(name)}={getattr(args, name)}: expected a positive number")


def run(args):
    from nanochat.checkpoint_manager import find_largest_model, load_model
    from nanochat.dataloader import DataLoader
    from nanochat.dataset import get_dataset_id
    from nanochat.device import select_device, select_dtype
    from nanochat.tokenizer import get_token_bytes, get_tokenizer_id
    device = select_device(args.device_type)
    dtype, why = select_dtype("auto", device)
    print0(f"COMPUTE_DTYPE: {dtype} ({why})")
    tag = args.model_tag or find_largest_model(BASE.root(get_base_dir()))
    model, tokenizer, meta = load_model(BASE.name, device, tag, args.step, dtype)
    B, T = args.device_batch_size, model.config.sequence_len
    steps = args.split_tokens // (B * T)
    if steps == 0:
        raise ValueError(f"--split-tokens={args.split_tokens} is less than one batch of --device-batch-size "
                         f"{B} x {T} = {B * T} tokens; raise it, or lower --device-batch-size")
    loaders = {split: DataLoader(tokenizer, B, T, split, device)
               for split in ("train", "val") if args.split in (split, "both")}
    print0(f"Loss of step {meta['step']} of {tag}, over {steps * B * T:,} tokens a split")
    token_bytes = get_token_bytes(device)
    results = dict(model_tag=tag, step=meta["step"], dtype=str(dtype).removeprefix("torch."), device=device.type,
                   max_seq_len=T, device_batch_size=B, tokenizer_id=get_tokenizer_id(), dataset_id=get_dataset_id(),
                   train=None, val=None)
    if args.per_position:
        measured = ("model_tag", "step", "dtype", "device", "tokenizer_id", "dataset_id")
        facts = per_position(model, tokenizer, args, device)
        write_json(args.per_position, facts | {key: results[key] for key in measured})
        print0(f"Losses by position written to: {args.per_position}")
    for split, loader in loaders.items():
        batches = (batch for _, batch in zip(range(steps), loader))
        results[split] = found = summarize(token_losses(model, batches), token_bytes)
        print0(f"{split} loss: {found['loss']:.6f}")
        print0(f"{split} bpb: {'not measured, no bytes' if found['bpb'] is None else format(found['bpb'], '.6f')}")
    if args.output_json:
        write_json(args.output_json, results)
        print0(f"Results written to: {args.output_json}")


def main(argv=None):
    parser = build_parser()
    args = parser.parse_args(hyphenate(sys.argv[1:] if argv is None else argv))
    try:
        check(args)
        run(args)
    except (ValueError, OSError) as e:
        parser.error(e)


if __name__ == "__main__":
    main()
