"""
The processes (ranks) that train one model together, and the decisions that they must take alike.

Example: the clock of rank 0 says that the wall budget is spent, and the clock of rank 1 that a millisecond is left. If
each rank decided for itself, rank 0 would stop and rank 1 would wait for it for ever. So every decision to stop, to
save or to validate, and every test for divergence, is taken together. Either it reads a number that all ranks have (the
losses summed, the clock of rank 0), or it asks whether any rank has a reason.

A single rank decides alone. The methods then return their argument, and torch is never imported.
"""

from dataclasses import dataclass

from nanochat.common import get_dist_info


@dataclass(frozen=True)
class Ranks:
    """Every rank calls the same methods in the same order. With more than one rank the default process group of
    torch.distributed must be there, with a backend for CPU tensors ("gloo", or "cpu:gloo,cuda:nccl")."""
    rank: int = 0  # of this process, among all
    local_rank: int = 0  # of this process, on its machine: the number of its GPU
    world_size: int = 1

    @classmethod
    def from_environment(cls) -> "Ranks":
        """As torchrun starts this process; one rank outside torchrun."""
        return cls(*get_dist_info())

    def sum(self, x: float | int) -> float | int:
        """Sum of a number over the ranks; an int stays an exact int, a float is added in float64."""
        if self.world_size == 1:
            return x
        import torch
        import torch.distributed as dist
        total = torch.tensor(x, dtype=torch.int64 if isinstance(x, int) else torch.float64)
        dist.all_reduce(total)
        return total.item()

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on some rank. No rank goes on before all have called it."""
        return flag if self.world_size == 1 else self.sum(int(flag)) > 0

    def broadcast(self, obj):
        """Rank 0's object, which can be pickled, on every rank."""
        if self.world_size == 1:
            return obj
        import torch.distributed as dist
        box = [obj]
        dist.broadcast_object_list(box, src=0)
        return box[0]


ONE_RANK = Ranks()
