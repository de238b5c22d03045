"""
The lines that a protocol says before its runs: what is compared, on what, by which rules, and what is reused.
"""

import shlex

from nanochat.lab.arms import same_options
from nanochat.lab.ledger.bank import reference_lines
from nanochat.lab.report.text import label_lines


def announce(session, changed, say):
    """The workload, the arms, what is new in the declaration, the noise, and the rules of the label."""
    p = session.protocol
    say(f"protocol {p.name}: profile {p.profile.name} ({p.profile.about})")
    if p.workload.why:
        say(f"  {p.profile.name}: {p.workload.why}")
    if p.profile.data:
        say(f"  data {p.profile.data}: dataset_id {p.inputs.dataset_id[:8]}, in {p.home}")
    if p.workload.added_flags:
        say(f"  every arm: {shlex.join(p.workload.added_flags)}")
    for arm in p.arms:
        say(f"  {arm.name}: {arm.flags or 'the profile as it is'}")
    for a, b in same_options(p.arms):
        say(f"  {b} has the options of {a}: an A/A comparison, differences should be exactly 0")
    for arm in session.declaration.arms:
        if arm.profile_changes:
            say(f"  {arm.name} changes the workload ({'; '.join(arm.profile_changes)}): "
                "it is run and shown, and gets no verdict")
    for arm in p.arms[1:] if not p.plan.aa else []:
        if labels := session.earlier.elsewhere(arm.flags):
            say(f"  {arm.name} was declared before on other data or common flags ({', '.join(labels)}): each of these "
                f"may promote for nothing, so the best of {len(labels) + 1} answers promises less than any of them")
    if session.was_on not in (None, p.inputs.dataset_id):
        say(f"  {session.results.latest} was a comparison on other data (dataset_id {session.was_on[:8]}) and is "
            "replaced; another LABEL keeps both")
    for line in changed:
        say(f"  new declaration, {line}")
    noise = session.declaration.noise
    for line in [*reference_lines(noise.from_reference), *map("left out of the bank: {}".format, noise.left_out)] \
            if noise else []:
        say(f"  {line}")
    if others := session.bank_of_others():
        say(f"  {others}")
    for line in label_lines(session.declaration):
        say(f"  {line}")


def say_notes(session, say):
    """Sentences that came up since the last time, for example about a damaged file."""
    while session.notes:
        say(f"note: {session.notes.pop(0)}")


def announce_cells(session, cells, left, say):
    """Which of `cells` are reused, and which are run."""
    say_notes(session, say)
    reused = [cell.title for cell in cells if cell not in left]
    if reused:
        say(f"  reused {len(reused)} of {len(cells)} cells (one arm at one seed each), because their runs are complete "
            f"and nothing that decides their numbers has changed: {', '.join(reused)} (FRESH=1 runs anew)")
    if left:
        say(f"  to run: {len(left)} cells, {', '.join(cell.title for cell in left)}")
