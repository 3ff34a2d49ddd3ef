"""`stemma bench soak`: a server under everything at once for a long time, and proof that nothing is lost or left.

Random programs and requests whose answers are known from a quiet run, among clients that abort, leave, read slowly,
send nonsense and constraints that explode; a pool so small that branches are retracted; and the engine process killed
now and then. Every job must end in time with its answer or with an error that it may have.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import requests

from stemma.backend.bench.soak_jobs import (
    ANSWERED,
    VARIANTS,
    Client,
    Refused,
    Wrong,
    engine_gone,
    refused_for_now,
)
from stemma.backend.bench.soak_leaks import MIB, Observer, compare, wait_idle
from stemma.backend.bench.soak_vandals import UNANSWERED

SERVER = {
    "port": 0,
    "num-threads": 1,
    "max-total-tokens": 1500,  # so few that branches are retracted
    "context-length": 1024,
    "max-running-requests": 24,
    "chunked-prefill-size": 128,
    "schedule-conservativeness": 0.02,
    "max-queued-requests": 256,
    "client-stall-timeout": 2,
    "max-client-buffer-kb": 256,
    "lease-seconds": 3,
    "grammar-cache-mb": 8,  # full after a minute, so that growth shows what is not a cache
    "max-engine-restarts": 100_000,
    "drain-timeout": 20,
}
MARGIN = 1.0  # seconds around an outage in which a job may notice it
KILLING = 0.6  # share of the time in which engines are killed: the last one shows whether its memory stays
REFUSED_SECONDS = 0.05  # a client that was told to come again later does so after this


@dataclass
class Outcome:
    """What became of the jobs."""

    counts: Counter[str] = field(default_factory=Counter)
    by_job: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0
    outages: list[list[float]] = field(default_factory=list)  # [killed, back]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, message: str) -> None:
        with self.lock:
            self.failures.append(message)
        print(f"FAILED: {message}", file=sys.stderr, flush=True)

    def outage(self, begin: float, end: float) -> bool:
        """Whether there may have been no engine at some moment of this time."""
        return any(begin <= back + MARGIN and end >= killed - MARGIN for killed, back in self.outages)


class Server:
    """A server of its own, whose words are kept."""

    def __init__(self, options: list[str]) -> None:
        command = [sys.executable, "-m", "stemma", "serve", *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.said: deque[str] = deque(maxlen=2000)
        self.url = ""
        ready = threading.Event()

        def listen() -> None:
            assert self.process.stdout is not None
            for line in self.process.stdout:
                self.said.append(line.rstrip())
                if found := re.search(r"ready on (http://\S+)", line):
                    self.url = found.group(1)
                    ready.set()
            ready.set()

        self._listener = threading.Thread(target=listen, daemon=True)
        self._listener.start()
        if not ready.wait(120) or not self.url:
            self.process.kill()
            raise SystemExit("the server did not start: " + "\n".join(self.said))

    def end(self, seconds: float) -> int | None:
        """Its exit status after SIGTERM; None if it had to be killed."""
        self.process.terminate()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return None
        finally:
            self._listener.join(5)


class Soak:
    """One run against the server at `url`."""

    def __init__(self, url: str, *, clients: int, bound: float, seed: int) -> None:
        self.url, self.bound, self.seed, self.clients = url, bound, seed, clients
        self.outcome = Outcome()
        self.observer = Observer(url)
        self.truth: dict[tuple[str, int], str] = {}
        self.stop = threading.Event()
        self.vanished: list[str] = []
        self.model = requests.get(url + "/v1/models", timeout=bound).json()["data"][0]["id"]

    def client(self) -> Client:
        return Client(self.url, self.bound, self.model)

    def learn(self, variants: int) -> None:
        """The answers on the quiet server, one job after the other."""
        client = self.client()
        for name, job in ANSWERED.items():
            for variant in range(variants):
                self.truth[name, variant] = json.dumps(job(client, variant))
        client.close()

    def work(self, number: int) -> None:
        """One client after the other, until it is time to stop."""
        rng = random.Random(self.seed * 1000 + number)
        while not self.stop.is_set():
            client = self.client()
            for _ in range(rng.randint(5, 40)):
                if self.stop.is_set():
                    break
                self.job(client, rng)
            self.vanished += client.vanished
            client.close()

    def job(self, client: Client, rng: random.Random) -> None:
        """One job, and what became of it."""
        outcome = self.outcome
        begin = time.monotonic()
        if rng.random() < 0.6:
            name, variant = rng.choice(list(self.truth))
            label = f"{name} ({variant})"
        else:
            name, variant = rng.choice(list(UNANSWERED)), -1
            label = name
        try:
            if variant >= 0:
                got = json.dumps(ANSWERED[name](client, variant))
                if got != self.truth[name, variant]:
                    raise Wrong(f"answered {got[:300]}, on the quiet server {self.truth[name, variant][:300]}")
                kind = "answered as in the quiet run"
            else:
                UNANSWERED[name](client, rng)
                kind = "ended as they may"
        except Exception as error:
            end = time.monotonic()
            if refused_for_now(error):
                kind = "refused with 429 and Retry-After"
                time.sleep(REFUSED_SECONDS)
            elif (engine_gone(error) or isinstance(error, (requests.RequestException, OSError))) and outcome.outage(
                begin, end
            ):
                kind = "told that the engine was gone"
                time.sleep(REFUSED_SECONDS)
            else:
                kind = "failed"
                outcome.fail(f"{label}: {type(error).__name__}: {error}")
        seconds = time.monotonic() - begin
        if seconds > self.bound:
            outcome.fail(f"{label} took {seconds:.1f} s")
        with outcome.lock:
            outcome.counts[kind] += 1
            outcome.by_job[name] += 1
            outcome.slowest = max(outcome.slowest, seconds)

    def kill(self) -> bool:
        """End the engine process without warning, and wait until there is another. False if that takes too long."""
        pid = self.observer.engine_pid
        outage = [time.monotonic(), float("inf")]
        self.outcome.outages.append(outage)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        while time.monotonic() < outage[0] + 60:
            time.sleep(0.1)
            state = self.observer.look()
            if state is not None and state["engine"]["pid"] != pid:
                outage[1] = time.monotonic()
                return True
        self.outcome.fail("the engine did not come back within 60 s of being killed")
        return False

    def run(self, seconds: float, kill_every: float | None) -> None:
        """All of it at once, for so long."""
        self.observer.start()
        workers = [threading.Thread(target=self.work, args=(i,), daemon=True) for i in range(self.clients)]
        for worker in workers:
            worker.start()
        begin = time.monotonic()
        next_kill = begin + kill_every if kill_every else float("inf")
        shown = begin
        while (now := time.monotonic()) < begin + seconds:
            if now >= next_kill and now < begin + KILLING * seconds:
                self.kill()
                next_kill = time.monotonic() + (kill_every or 0)
            if now - shown >= 10:
                shown = now
                self.show(now - begin, seconds)
            time.sleep(0.2)
        self.stop.set()
        until = time.monotonic() + self.bound
        for worker in workers:
            worker.join(max(until - time.monotonic(), 0))
        lost = sum(worker.is_alive() for worker in workers)
        if lost:
            self.outcome.fail(f"{lost} clients still wait for an answer {self.bound:g} s after the end")
        self.observer.stop()

    def show(self, elapsed: float, seconds: float) -> None:
        counts, newest = self.outcome.counts, {life.name: life for life in self.observer.lives}
        memory = ", ".join(f"{name} {life.points[-1][1] / MIB:.0f} MiB" for name, life in newest.items())
        done, bad = sum(counts.values()), len(self.outcome.failures)
        kills = len(self.outcome.outages)
        print(f"{elapsed:6.0f}/{seconds:.0f} s  {done} jobs, {kills} kills, {bad} failed; {memory}", file=sys.stderr)

    def end_vanished(self) -> None:
        """The programs that nobody ended. Their leases would end them, but not within the time of a short run."""
        for program in self.vanished:
            requests.post(self.url + "/v1/graph/cancel", json={"program": program}, timeout=self.bound)


def measure(args: argparse.Namespace) -> int:
    """One soak; the exit status."""
    with _served(args) as (url, server):
        soak = Soak(url, clients=args.clients, bound=args.bound, seed=args.seed)
        begin = time.monotonic()
        soak.learn(args.variants)
        learnt = time.monotonic() - begin
        before, left = wait_idle(soak.observer.look, 30)
        if before is None or left:
            raise SystemExit(f"the server is not idle before it begins: {left}")
        requests.post(url + "/flush_cache", timeout=60)
        print(f"{len(soak.truth)} answers learnt in {learnt:.1f} s", file=sys.stderr, flush=True)
        soak.run(60 * args.minutes, None if args.kill_every <= 0 or server is None else args.kill_every)

        soak.end_vanished()
        after, left = wait_idle(soak.observer.look, 60)
        for what in left:
            soak.outcome.fail(f"left behind: {what}")
        with contextlib.suppress(Refused):
            if requests.post(url + "/flush_cache?timeout=10", timeout=60).status_code != 200:
                soak.outcome.fail("the cache cannot be flushed")
        time.sleep(args.settle)
        after = soak.observer.look()
        if after is not None:
            for leak in compare(before, after):
                soak.outcome.fail(f"leak: {leak}")
        for broken in soak.observer.broken:
            soak.outcome.fail(f"integrity: {broken}")
        for life in soak.observer.lives:
            if life.growth() > args.max_growth * MIB:
                soak.outcome.fail(f"memory: {life.line()}: it grew by {life.growth() / MIB:.1f} MiB")
        if server is not None:
            _end(soak, server)
        _report(soak, before, after)
        return 1 if soak.outcome.failures else 0


def _end(soak: Soak, server: Server) -> None:
    """SIGTERM with a request under way: it must be answered, and nothing may stay."""
    answers: list[Any] = []
    params = {"max_new_tokens": 200, "temperature": 0, "ignore_eos": True}
    body = {"text": "the last one", "sampling_params": params}
    last = threading.Thread(
        target=lambda: answers.append(requests.post(soak.url + "/generate", json=body, timeout=soak.bound).status_code)
    )
    last.start()
    time.sleep(0.1)
    engine = soak.observer.engine_pid
    status = server.end(40)
    last.join(soak.bound)
    if status != 0:
        soak.outcome.fail(f"the server ended with status {status}")
    if answers != [200]:
        soak.outcome.fail(f"the request that ran at the end was answered with {answers}")
    with contextlib.suppress(ProcessLookupError):
        os.kill(engine, 0)
        soak.outcome.fail("the engine process outlived the server")
    for line in server.said:
        if "Traceback" in line or "ERROR" in line:
            soak.outcome.fail(f"the server said: {line}")
            print("\n".join(server.said), file=sys.stderr)
            break


def _report(soak: Soak, before: dict[str, Any], after: dict[str, Any] | None) -> None:
    outcome = soak.outcome
    print(f"\n{sum(outcome.counts.values())} jobs of {soak.clients} clients, slowest {outcome.slowest:.2f} s")
    for kind, count in outcome.counts.most_common():
        print(f"  {count:>7} {kind}")
    back = [back - killed for killed, back in outcome.outages]
    if back:
        print(f"  engine killed {len(back)} times, ready again after {min(back):.1f} to {max(back):.1f} s")
    print("memory (the first part of each life is warm-up)")
    for life in soak.observer.lives:
        print(f"  {life.line()}")
    if after is not None:
        print("when idle: before -> after (most)")
        for side in ("front", "engine"):
            for what in ("threads", "fds", "children", "tasks"):
                if what in before[side]:
                    most = soak.observer.most.get(f"{side} {what}", 0)
                    print(f"  {side + ' ' + what:<16} {before[side][what]:>4} -> {after[side][what]:<4} ({most})")
        engine = after["engine"]
        print(f"  free slots       {engine['free_slots']} of {engine['total_slots']}; programs {engine['programs']}")
        print("  " + ", ".join(f"{what} {count}" for what, count in soak.observer.counted.items()))
    print("FAILED" if outcome.failures else "passed: no answer lost, nothing left behind")
    for failure, count in Counter(outcome.failures).most_common(20):
        print(f"  {count} x {failure}")


@contextlib.contextmanager
def _served(args: argparse.Namespace) -> Iterator[tuple[str, Server | None]]:
    if args.url:
        yield args.url.rstrip("/"), None
        return
    options = [text for name, value in SERVER.items() for text in (f"--{name}", str(value))]
    server = Server([*options, *args.server_options])
    try:
        yield server.url, server
    finally:
        if server.process.poll() is None:
            server.end(40)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="stemma bench soak",
        description="A server under programs, requests, and hostile and careless clients; its engine is killed now and "
        "then. Exit status 1 if an answer is wrong or missing, or anything is left behind.",
        epilog="Options after -- go to the server, e.g. -- --disable-radix-cache",
    )
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default: 5)")
    parser.add_argument("--clients", type=int, default=8, help="at a time (default: 8)")
    parser.add_argument(
        "--kill-every", type=float, default=120.0, help="seconds between kills of the engine; 0: none (default: 120)"
    )
    parser.add_argument("--bound", type=float, default=60.0, help="seconds within which a job must end (default: 60)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--variants", type=int, default=VARIANTS, help="of each job (default: all)")
    parser.add_argument("--settle", type=float, default=3.0, help="seconds for connections to close at the end")
    parser.add_argument(
        "--max-growth", type=float, default=48.0, help="MiB that a process may grow by after its warm-up (default: 48)"
    )
    parser.add_argument("--url", help="a server that is there already; it is not killed, and should be otherwise idle")
    given = list(sys.argv[1:] if argv is None else argv)
    server = given[given.index("--") + 1 :] if "--" in given else []
    args = parser.parse_args(given[: given.index("--")] if "--" in given else given)
    args.server_options = server
    return measure(args)


if __name__ == "__main__":
    sys.exit(main())
