"""
A protocol from the arguments of a command. scripts.protocol, scripts.smoke and scripts.noise make their protocols here:

    workload = choose_workload(args.profile, "protocol-16gb", common_flags)
    protocol = build_protocol(label, workload, make_arms(candidates, workload.flags), seeds)
    make_data(protocol, dataset, tokenizer)
"""

import importlib.util
from dataclasses import asdict

from nanochat.common import get_base_dir
from nanochat.lab import own_data, profiles
from nanochat.lab.arms import Arm, refuse_rounded
from nanochat.lab.hardware import machine_name
from nanochat.lab.protocol.plan import Workload
from nanochat.lab.protocol.protocol import Protocol


def choose_workload(name: str | None, with_card: str, common_flags=(), data=None, worth_compiling=True) -> Workload:
    """The profile of this name; without a name the machine decides, with `with_card` for one that has a card.

    common_flags: what the user adds for every arm. data: name of a corpus of the user's own, in place of the profile's.
    worth_compiling: False for runs that never earn back their compilation. Raises ValueError for a profile that is not
    known here or needs another device, and for a corpus that is not here.
    """
    profile, memory_mib, why = profiles.choose(name, with_card)
    has_triton = worth_compiling and importlib.util.find_spec("triton") is not None
    machine = profiles.machine_flags(profile, memory_mib, has_triton)
    profile = profiles.on_data(profile, data, get_base_dir())
    mine = get_base_dir()
    if profile.builtin and not data and own_data.is_corpus(mine):
        why = "; ".join(filter(None, [why, f"NANOCHAT_BASE_DIR is the corpus {mine.name}, and this profile trains on "
                                           f"the built-in one: DATA={mine.name} trains on yours"]))
    return Workload(profile, profile.home(mine), machine, list(common_flags), why)


def build_protocol(label: str, workload: Workload, arms: list[Arm], seeds: list[int], kind=Protocol, **options):
    """A protocol on this machine. kind: Protocol or a subclass; options: its other fields.

    jobs None, or left out, is as many cells as run well side by side.
    """
    if options.get("jobs") is None:
        options["jobs"] = profiles.side_by_side(arms)
    machine = machine_name(arms[0].config.device_type)
    return kind(label, workload, arms, seeds, machine=machine, **options)


def make_data(protocol: Protocol, dataset, tokenizer):
    """Make corpus and tokenizer where they are missing; the cells have their hashes then.

    dataset, tokenizer: the modules nanochat.dataset and nanochat.tokenizer, which the lab does not import.
    """
    ids = profiles.prepare(protocol.profile, protocol.home, dataset, tokenizer, protocol.results.logs)
    protocol.identify(*ids)


def check_arms(protocol: Protocol, resolve, tokenizer):
    """Raise ValueError, naming the arm, where an arm cannot be run, or resolves to the same run as an earlier arm.

    resolve: nanochat.cost.resolve, and tokenizer: the module, neither of which the lab imports. An arm of another tree
    may name rows that only its tree has. If it cannot be resolved here, the check is left to that tree's trainer.
    """
    vocab_size, arms, resolved = tokenizer.get_tokenizer(protocol.home).get_vocab_size(), [], []
    protocol.cost = lambda config: resolve(config, vocab_size)
    for arm in protocol.arms:
        try:
            resolved.append(asdict(protocol.cost(arm.config)))
            arms.append(arm)
        except ValueError as e:
            if not arm.tree_id:
                raise ValueError(f"arm {arm.name}: {e}") from e
    refuse_rounded(arms, resolved)
