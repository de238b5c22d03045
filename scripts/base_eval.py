"""
Evaluate a base model: bits per byte on both splits, and samples.

    python -m scripts.base_eval --model-tag d12 --device-batch-size 16
    python -m scripts.base_eval --eval bpb --split-tokens 524288 --output-json results/d12_eval.json

Flags, printed lines and figures are upstream's, and documents are read in the order of the files. So both projects
print the same bpb for a checkpoint. CORE is not here yet.
"""

import argparse
import sys

from nanochat.command_line import Defaults, Parser
from nanochat.common import get_base_dir, get_dist_info, print0, write_json
from nanochat.options import flag, hyphenate
from nanochat.stage import BASE

MODES = ("core", "bpb", "sample")


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="base_eval", description="Evaluate a base model.", allow_abbrev=False,
                    formatter_class=Defaults)
    parser.add_argument("--eval", default="bpb,sample",
                        help=f"evaluations to run, of {','.join(MODES)} (core is not here yet)")
    parser.add_argument("--model-tag", help="folder of the checkpoint (default: the deepest d<N>)")
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest whole one)")
    parser.add_argument("--max-per-task", type=int, default=-1,
                        help="examples per CORE task: not here yet, anything but -1 is refused")
    parser.add_argument("--device-batch-size", type=int, default=32, help="rows in a batch")
    parser.add_argument("--split-tokens", type=int, default=40 * 524288, help="tokens to read of each split")
    parser.add_argument("--device-type", choices=("", "cuda", "cpu", "mps"), default="",
                        help="device to run on; empty = autodetect")
    parser.add_argument("--output-json", metavar="FILE", help="also write the results to this file")
    return parser


def check(args) -> set[str]:
    """The modes asked for. Raises ValueError, before any work, for a request that cannot be met."""
    modes = {mode.strip() for mode in args.eval.split(",")}
    if unknown := modes - set(MODES):
        raise ValueError(f"--eval={args.eval}: {', '.join(sorted(unknown))} is unknown; "
                         f"expected some of {', '.join(MODES)}")
    if "core" in modes or args.max_per_task != -1:
        raise ValueError("CORE is not here yet: leave it out with --eval=bpb,sample, and --max-per-task with it")
    if get_dist_info()[2] > 1:
        raise ValueError("more than one rank is not here yet: start one process, without torchrun")
    for name in ("device_batch_size", "split_tokens"):
        if getattr(args, name) < 1:
            raise ValueError(f"{flag(name)}={getattr(args, name)}: expected a positive number")
    return modes


def banner(title: str):
    print0(f"\n{'=' * 80}\n{title}\n{'=' * 80}")


def print_samples(model, tokenizer) -> dict:
    from nanochat.engine import Engine
    from nanochat.run_eval import SAMPLE_PROMPTS
    banner("Model Samples")
    engine = Engine(model, tokenizer)
    texts = {"samples": [], "unconditioned_samples": []}

    def generate(kind, prompt, **sampling):
        rows, _ = engine.generate_batch(tokenizer(prompt, prepend="<|bos|>"), **sampling)
        for row in rows:
            texts[kind].append(tokenizer.decode(row))
            print0(f"{'-' * 80}\n{texts[kind][-1]}")
    print0("\nConditioned samples:")
    for prompt in SAMPLE_PROMPTS:
        generate("samples", prompt, max_tokens=16, temperature=0)
    print0("\nUnconditioned samples:")
    generate("unconditioned_samples", "", num_samples=8, max_tokens=128, temperature=1.0)
    return texts


def print_bpb(model, loaders, split_tokens: int, token_bytes) -> dict:
    from nanochat.loss_eval import evaluate_bpb
    banner("BPB Evaluation")
    batch_tokens = loaders["train"].B * loaders["train"].T
    steps = split_tokens // batch_tokens
    if split_tokens % batch_tokens:
        print0(f"Adjusted split_tokens to {steps * batch_tokens} (must be divisible by {batch_tokens})")
    results = {"split_tokens": steps * batch_tokens}
    for split, loader in loaders.items():
        bpb = evaluate_bpb(model, (batch for _, batch in zip(range(steps), loader)), token_bytes)
        results[f"{split}_bpb"] = bpb
        print0(f"{split} bpb: {bpb:.6f}")
    return results


def make_loaders(tokenizer, args, T: int, device) -> dict:
    """Both splits in the order of the files. ValueError where not one batch is asked for."""
    from nanochat.dataloader import DataLoader
    batch_tokens = args.device_batch_size * T
    if args.split_tokens < batch_tokens:
        raise ValueError(f"--split-tokens={args.split_tokens} is less than one batch of --device-batch-size "
                         f"{args.device_batch_size} x {T} = {batch_tokens} tokens; "
                         "raise it, or lower --device-batch-size")
    return {split: DataLoader(tokenizer, args.device_batch_size, T, split, device) for split in ("train", "val")}


def run(args, modes):
    from nanochat.checkpoint_manager import find_largest_model, load_model
    from nanochat.dataset import get_dataset_id
    from nanochat.device import select_device, select_dtype
    from nanochat.tokenizer import get_token_bytes, get_tokenizer_id
    device = select_device(args.device_type)
    dtype, why = select_dtype("auto", device)
    print0(f"COMPUTE_DTYPE: {dtype} ({why})")
    tag = args.model_tag or find_largest_model(BASE.root(get_base_dir()))
    model, tokenizer, meta = load_model(BASE.name, device, tag, args.step, dtype)
    T = model.config.sequence_len
    loaders = make_loaders(tokenizer, args, T, device) if "bpb" in modes else None
    print0(f"Evaluating model: base_model (step {meta['step']}) of {tag}")
    print0(f"Eval modes: {', '.join(sorted(modes))}")
    results = dict(model_tag=tag, step=meta["step"], dtype=str(dtype).removeprefix("torch."), device=device.type,
                   max_seq_len=T,
                   device_batch_size=args.device_batch_size, tokenizer_id=get_tokenizer_id(), dataset_id=None,
                   split_tokens=None, train_bpb=None, val_bpb=None, samples=None, unconditioned_samples=None)
    if "sample" in modes:
        results.update(print_samples(model, tokenizer))
    if loaders:
        results.update(print_bpb(model, loaders, args.split_tokens, get_token_bytes(device)),
                       dataset_id=get_dataset_id())
    if args.output_json:
        write_json(args.output_json, results)
        print0(f"Results written to: {args.output_json}")


def main(argv=None):
    parser = build_parser()
    args = parser.parse_args(hyphenate(sys.argv[1:] if argv is None else argv))
    try:
        run(args, check(args))
    except (ValueError, OSError) as e:
        parser.error(e)


if __name__ == "__main__":
    main()
