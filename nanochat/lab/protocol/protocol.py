"""
A protocol: control and candidates over the same seeds, cell by cell, into one result file.

The declaration (arms, seeds, gates, looks, source of the noise) is on disk before the first run. The verdict is read
from this declaration. `run` does everything between the parsed arguments and the exit code.
"""

import contextlib
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from nanochat.checks import MOST_JOBS
from nanochat.code_identity import tree_hash
from nanochat.config import profile_hash
from nanochat.lab.arms import NAME, Arm, Cell, Inputs, make_cells
from nanochat.lab.commands import EXIT_FAILED_CELL, EXIT_INTERRUPTED, EXIT_OK, RESULTS_DIR, complete, paste
from nanochat.lab.profiles import Profile, noise_options
from nanochat.lab.protocol import preflight
from nanochat.lab.protocol.announce import announce, announce_cells, say_notes
from nanochat.lab.protocol.attempts import begin, end, poll, see, tell
from nanochat.lab.protocol.books import Books
from nanochat.lab.protocol.earlier import DeclaredMeanwhile
from nanochat.lab.protocol.executor import Executor, LocalExecutor
from nanochat.lab.protocol.plan import Plan, Workload
from nanochat.lab.protocol.progress import Progress
from nanochat.lab.protocol.results import Results, curve
from nanochat.lab.protocol.runner import TRAINER, Runner
from nanochat.lab.protocol.session import Session
from nanochat.lab.protocol.watch import Watch
from nanochat.lab.report.html import write_report
from nanochat.lab.report.index import write_index
from nanochat.lab.report.plots import draw_protocol
from nanochat.lab.report.result_file import ResultFile
from nanochat.lab.report.text import results_table
from nanochat.lab.trees.orders import reader_hash
from nanochat.lab.trees.tree_arms import check_seeds
from nanochat.lab.verdict import gates

POLL_SEC = 0.5
AA_OFFSET = 1_000_000  # between the seeds of a pair in an A/A protocol


@dataclass
class Protocol:
    label: str
    workload: Workload
    arms: list[Arm]  # control first
    seeds: list[int]
    plan: Plan = Plan()
    ledger: Path | None = None  # rows go here
    bank: Path | None = None  # the banked runs come from here; None = from the ledger
    times: Path | None = None  # ledger that tells how long runs take, where there is no other
    machine: str = ""  # name of the device; a bank is of one machine
    fresh: bool = False
    timeout_sec: float | None = None
    jobs: int = 1  # cells that run side by side, each on its share of the cores
    extra: tuple[str, ...] = ()  # words of the user's command that decide nothing, such as --jobs=1
    results_dir: Path = RESULTS_DIR
    trainer: tuple = TRAINER
    executor: Callable[[Runner], Executor] = LocalExecutor  # where the cells are trained
    cost: Callable | None = field(default=None, init=False)  # config -> what cost.resolve says; made by check_arms
    inputs: Inputs | None = field(default=None, init=False)  # these three are made by identify
    profile_hash: str | None = field(default=None, init=False)
    cells: list[Cell] = field(default_factory=list, init=False)

    def __post_init__(self):
        if self.label and not NAME.fullmatch(self.label):
            raise ValueError(f"--label={self.label}: expected letters, digits, '.', '_' and '-'; "
                             "it names files and folders")
        if self.timeout_sec is not None and not self.timeout_sec > 0:
            raise ValueError(f"--timeout-minutes={self.timeout_sec / 60:g}: expected minutes above 0")
        if not 1 <= self.jobs <= MOST_JOBS:
            raise ValueError(f"--jobs={self.jobs}: expected 1 or more, at most {MOST_JOBS:,}")
        device_type = self.arms[0].config.device_type
        if self.jobs > 1 and device_type != "cpu":
            raise ValueError(f"--jobs={self.jobs}: cells share cores, not a {device_type or 'device'}; leave it at 1")
        check_seeds(self.arms, self.seeds)
        self.results = Results(self.results_dir, self.name)  # a foreign history is refused here

    def identify(self, dataset_id: str, tokenizer_id: str):
        """Fix the inputs of the cells; their hashes follow from the inputs."""
        self.inputs, self.reader = Inputs(dataset_id, tokenizer_id, tree_hash()), reader_hash(self.arms)
        self.cells = make_cells(self.arms, self.seeds, self.label, self.inputs, AA_OFFSET if self.plan.aa else 0)
        control = self.arms[0].config
        self.profile_hash = profile_hash(control, control.device_type or "cpu", dataset_id, tokenizer_id)

    @property
    def name(self) -> str:
        return self.label or "protocol"

    @property
    def profile(self) -> Profile:
        return self.workload.profile

    @property
    def home(self) -> Path:
        return self.workload.home

    def command(self, seeds=None) -> str:
        """The public command that means this protocol, or the same with other seeds."""
        common = self.workload.common_flags
        words = ["python", "-m", "scripts.protocol", f"--profile={self.profile.name}"]
        words += [f"--data={self.profile.data}"] if self.profile.data else []
        words += [f"--label={self.label}"] if self.label else []
        words += ["--seeds", *map(str, seeds or self.seeds)]
        words += [f"--flags={shlex.join(common)}"] if common else []
        words += [arm.argument for arm in self.arms if arm.argument]
        return shlex.join([*words, *self.plan.words(max_seeds=len(self.seeds))])

    def again(self, seeds=None) -> str:
        """The command, to paste, that goes on with this protocol, or runs it with other seeds."""
        return paste([*shlex.split(self.command(seeds)), *self.extra])

    def noise_options(self) -> list[str]:
        """The options of scripts.noise that bank for this protocol."""
        words = noise_options(self.profile.name, self.profile.data, self.workload.common_flags, self.jobs)
        return words + [word for word in self.extra if word.startswith("--ledger=") and self.bank is None]


def run(protocol: Protocol, say=print) -> int:
    """Declare, run the missing cells, write and print the results. Returns the exit code."""
    assert protocol.cells, "identify() comes first"
    options = protocol.noise_options()
    try:
        return _run(protocol, lambda text: say(complete(text, options)))
    except ValueError as e:
        raise ValueError(complete(str(e), options)) from e


def _run(protocol: Protocol, say) -> int:
    with _only_one(protocol, say):
        Books(protocol).check()
        session, changed = _declared(protocol, say)
        announce(session, changed, say)
        for line in preflight.lines(session):
            say(f"  {line}")
        for cells in batches(session):
            left = session.reuse(cells)
            session.write()
            announce_cells(session, cells, left, say)
            if run_cells(session, left):
                session.write()
                say(f"stopped; what was trained is saved. Go on with the same command:\n  {protocol.again()}")
                return EXIT_INTERRUPTED
        facts = session.write()
        report_results(session, facts, say)
    return EXIT_OK if all(run.run_status == "ok" for run in facts.runs) else EXIT_FAILED_CELL


def _declared(protocol: Protocol, say) -> tuple[Session, list[str]]:
    """A session with its declaration on disk. A label that another process declares meanwhile is read again."""
    for more in (True, True, False):
        try:
            session = Session(protocol)
            say_notes(session, say)
            return session, session.declare()
        except DeclaredMeanwhile:
            if not more:
                raise


def batches(session: Session):
    """Yield the cells up to each declared look, without the arms that are decided. A fixed protocol has one look."""
    protocol, done = session.protocol, 0
    for look in session.declaration.looks:
        if done:
            decided = gates.is_decided(session.declaration, session.ordered_runs())
            if all(decided.values()):
                return
        skipped = [name for name, no_use in decided.items() if no_use] if done else []
        seeds = protocol.seeds[done:look]
        yield [cell for cell in protocol.cells if cell.seed in seeds and cell.arm.name not in skipped]
        done = look


def run_cells(session: Session, cells: list[Cell]) -> bool:
    """Run `cells`, `jobs` at a time, going on after a failed one. True when the user stopped it.

    Raises ValueError when the code is no longer what the cells' hashes say: arms must not run on different code.
    """
    executor, protocol = session.executor, session.protocol
    session.progress = progress = Progress(len(session.runs) + len(cells), len(cells), before=session.progress)
    watch = Watch()
    waiting, running = list(cells), []
    try:
        while waiting or running:
            while waiting and len(running) < protocol.jobs:
                _check_tree(session)
                running.append(begin(session, progress, waiting.pop(0)))
            watch.tick()
            for attempt in list(running):
                outcome = poll(session, attempt, POLL_SEC / len(running))
                see(session, progress, watch, attempt)
                if outcome:
                    running.remove(attempt)
                    waiting[:0] = end(session, progress, attempt, outcome)
            progress.show()
    except KeyboardInterrupt as e:
        own = [attempt for attempt in running if not attempt.foreign]
        for attempt, outcome in zip(own, executor.stop(own, by=str(e) or "SIGINT")):
            tell(session, progress, attempt.cell, outcome)
        return True
    except BaseException:  # a full disk, edited code: running cells save before the protocol ends
        executor.stop([attempt for attempt in running if not attempt.foreign])
        raise
    return False


def _check_tree(session):
    protocol = session.protocol
    if (tree_hash(), reader_hash(protocol.arms)) != (protocol.inputs.tree_hash, protocol.reader):
        raise ValueError(f"the code of the trainer changed since this protocol began ({len(session.runs)} cells are "
                         "done): put it back and start it again to go on, or start it again to run every cell on the "
                         "new code")


def report_results(session: Session, facts: ResultFile, say=print):
    """The tables, the picture and where everything is."""
    protocol, written = session.protocol, [session.results.latest, session.results.history]
    say(results_table(facts))
    curves = {(run.arm, run.seed): curve(protocol.home, run.run_tag) for run in facts.runs}
    if draw_protocol(session.results.picture, protocol.name, facts, curves):
        written.append(session.results.picture)
    if session.declaration.noise_source == "none" and protocol.arms[1:]:  # a bank has nothing to settle
        more = protocol.seeds + [max(protocol.seeds) + i for i in range(1, 6 - len(protocol.seeds))]
        say(f"to settle it without a bank, reusing these cells:\n  {protocol.again(more)}")
    page = session.results.logs / "report.html"
    write_report(page, facts, curves)
    written += filter(None, [page, write_index(page.parent.parent)])
    written = [path for path in written if path.exists()]
    say(f"written: {', '.join(map(str, written))}; logs in {session.results.logs}")


@contextlib.contextmanager
def _only_one(protocol: Protocol, say):
    """Wait while a protocol of this name runs here: both would write the same results. Then its runs are taken over.

    It may be the child of a miniseries that was killed, or the same command typed twice.
    """
    folder = Path(protocol.results_dir)
    path = folder / f".{protocol.name}.lock"
    lock = FileLock(path, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        say(f"protocol {protocol.name} is already running here (it holds {path}): its end is waited for, then its runs "
            "are taken over. Ctrl-C stops the waiting only; another --label would not wait")
        lock.acquire(timeout=-1, poll_interval=POLL_SEC)
    except OSError as e:
        raise OSError(f"{folder} cannot be written: {e.strerror}; results go there: make it writable, or start from "
                      "another working directory") from e
    try:
        protocol.results.sweep()
        yield
    finally:
        lock.release()
