"""
The model of another tree, answering with logits. nanochat/tree_score.py starts it, in the folder of that tree:

    python <this repository>/nanochat/tree_logits.py CHECKPOINTS STEP DEVICE DTYPE

In this process the package `nanochat` is the tree's. So the tree's code builds the model and loads the checkpoint, and
nothing of it runs in the process that computes the loss. Before the first import the folder of this file leaves the
path; nothing else of this repository is imported.

The first line of stdout says which dtype the model computes in. After that, a request on stdin is B and T and then
B x T token ids; the answer is V and then B x T x V logits in fp32. Sizes and ids are int64. The end of stdin ends it.
What the tree prints goes to stderr.
"""

import json
import os
import sys

sys.path[0] = os.getcwd()  # the tree: this file is a script, and its own folder would be searched first

import torch  # noqa: E402


def load(folder: str, step: int, device: torch.device, dtype: torch.dtype):
    """The tree's model in eval mode. Trees of this project are given the dtype; upstream's read NANOCHAT_DTYPE."""
    from nanochat import checkpoint_manager as tree
    if hasattr(tree, "restore_model"):
        state, _, meta = tree.load_checkpoint(folder, step, device)
        return tree.restore_model(state, meta, device, dtype).eval()
    return tree.build_model(folder, step, device, phase="eval")[0]


def dtype_of(model) -> torch.dtype:
    """The dtype that the model computes in. Upstream has one for the whole process."""
    from nanochat import common
    return getattr(model, "compute_dtype", None) or getattr(common, "COMPUTE_DTYPE", torch.float32)


def read_int64(count: int) -> torch.Tensor | None:
    """None at the end of stdin."""
    data = bytearray(sys.stdin.buffer.read(8 * count))
    return torch.frombuffer(data, dtype=torch.int64) if len(data) == 8 * count else None


@torch.no_grad()
def answer(model, device, out):
    while (shape := read_int64(2)) is not None:
        ids = read_int64(int(shape.prod())).view(*shape.tolist())
        logits = model(ids.to(device))
        if logits.ndim != 3 or logits.shape[:2] != ids.shape:
            raise ValueError(f"model(ids) of {list(ids.shape)} gave {list(logits.shape)}, expected logits [B, T, V]")
        out.write(torch.tensor([logits.size(-1)], dtype=torch.int64).numpy().tobytes())
        out.write(memoryview(logits.float().cpu().contiguous().numpy()).cast("B"))
        out.flush()


def main():
    folder, step, device, dtype = sys.argv[1:]
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    device = torch.device(device)
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # as both trainers do
    model = load(folder, int(step), device, getattr(torch, dtype))
    out.write(json.dumps({"dtype": str(dtype_of(model)).removeprefix("torch.")}).encode() + b"\n")
    out.flush()
    answer(model, device, out)


if __name__ == "__main__":
    main()
