"""`stemma bench programs`: whole programs as graphs, against the same programs request by request, on one server.

Both sides are clients of one server over HTTP, in one run and in turns, each with a cold prefix cache. Ours sends each
program as a graph. The other side does what frontends without a graph do: one `/generate` for each gen, with all the
text so far, from 64 threads with kept-alive connections; a select is a request for the common text and one that
scores all choices.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import requests

from stemma.backend.bench.program_cases import Case, Client, Sizes, cases, generated, nested_tree
from stemma.backend.config import EngineConfig
from stemma.backend.text.tokenizer import Tokenizer
from stemma.interpreter.endpoints.base import Delta, OnEvent
from stemma.interpreter.endpoints.runtime import RuntimeEndpoint
from stemma.interpreter.endpoints.server_process import Runtime
from stemma.lang.errors import EndpointError

THREADS = 64
TIMED = "stemma.backend.bench.program_timed:TimedEngine"
GREEDY = {"temperature": 0.0, "ignore_eos": True}
COUNTS = ("prompt_tokens", "cached_tokens", "completion_tokens", "forced_tokens")

DESCRIPTION = """Runs three programs on one server, as graphs and request by request, and prints how long both take.

  tree_of_thought   fork 4 branches of three gens each, join their texts, one gen
  judge             fork 6 gens, join their texts, one gen, select of 4
  form              six times a literal and a gen, one after the other

All programs share a system text. Sizes are those of the comparison on a GPU, divided. For a step of all programs a
CPU could compute a quarter of the prompt tokens that the GPU could: texts are divided by four times as much as gens, so
that prompts and steps have the shares of the time that they have there."""

EPILOG = """columns:
  wall       seconds until the last program is done, median of --repeats, with a cold prefix cache each time;
             the order of the two sides alternates
  ratio      wall of the requests / wall of the graphs, of the medians; [lowest, highest] of the single repeats; and of
             the best run of each side, which a busy machine disturbs least
  client, server
             CPU seconds of each in the last run, of all their threads and processes (server: if it was started here)
  requests   HTTP requests that were answered
  run        tokens run through the model, as the server counts them
  prompt, cached, made, forced
             sums over all gens: tokens of their prompts, how many of these were in the cache, tokens generated,
             and how many of these the grammar forced
  equal      outputs with the same text. The others differ for a reason that is checked: text that is sent again is
             tokenised again, and may get other ids than those that were generated ("respelled"), or it follows such
             an output ("follows"); "other" should be 0

examples:
  stemma bench programs                          the bundled model
  stemma bench programs --only form --repeats 7
  stemma bench programs --timed --scale 2 --prompt-scale 2
  stemma bench programs --json > figures.json
  stemma bench programs --server http://localhost:30000 --scale 1 --prompt-scale 1 --model DIR
"""


class Requests(Client):
    """Programs request by request: one session per thread, so that connections are kept."""

    def __init__(self, url: str) -> None:
        self.url = f"{url}/generate"
        self.count = 0
        self.sums = dict.fromkeys(COUNTS, 0)
        self._local = threading.local()
        self._lock = threading.Lock()

    def _post(self, text: str | list[str], **fields: Any) -> Any:
        session = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = requests.Session()
            session.trust_env = False
        answer = session.post(self.url, json={"text": text, **fields}, timeout=600)
        if answer.status_code != 200:
            raise EndpointError(f"POST {self.url}: {answer.status_code} {answer.text[:300]}", status=answer.status_code)
        found = answer.json()
        with self._lock:
            self.count += 1
            for item in found if isinstance(found, list) else [found]:
                for name in COUNTS:
                    self.sums[name] += item["meta_info"].get(name) or 0
        return found

    def gen(self, text: str, tokens: int) -> str:
        return self._post(text, sampling_params={**GREEDY, "max_new_tokens": tokens})["text"]

    def select(self, text: str, choices: Sequence[str]) -> str:
        """As SGLang's frontend: have the common text cached, then score it with each choice behind it; where a token
        may span the border, the ids that all have in common are no part of the choice."""
        nothing = {"max_new_tokens": 0, "temperature": 0.0}
        length = self._post(text, sampling_params=nothing)["meta_info"]["prompt_tokens"]
        asked = {"return_logprob": True, "logprob_start_len": max(length - 2, 0)}
        items = self._post([text + choice for choice in choices], sampling_params=nothing, **asked)
        rows = [item["meta_info"]["input_token_logprobs"] for item in items]
        same = 0
        while all(len(row) > same + 1 for row in rows) and len({row[same][1] for row in rows}) == 1:
            same += 1
        scores = [statistics.fmean(entry[0] for entry in row[same:] if entry[0] is not None) for row in rows]
        return choices[scores.index(max(scores))]


class Graphs(RuntimeEndpoint):
    """The server's graphs, with a count of the requests."""

    count = 0
    refs = True

    def resolves_refs(self) -> bool:
        return self.refs and super().resolves_refs()

    def submit(self, delta: Delta, on_event: OnEvent) -> None:
        self.count += 1
        super().submit(delta, on_event)


class Bench:
    """One server, and both ways to use it."""

    def __init__(self, url: str, pid: int | None = None) -> None:
        self.url, self.pid = url, pid
        self.endpoint = Graphs(url)
        self.session = requests.Session()
        self.session.trust_env = False

    def flush(self) -> None:
        """Empty the prefix cache: every run begins cold."""
        until = time.monotonic() + 10.0
        while self.session.post(f"{self.url}/flush_cache", timeout=60).status_code != 200:
            if time.monotonic() > until:
                raise EndpointError("the server does not flush its cache: is somebody else using it?")
            time.sleep(0.01)

    def tokens_run(self) -> int | None:
        return self.session.get(f"{self.url}/get_server_info", timeout=60).json().get("tokens_computed")

    def counters(self) -> dict[str, float | None]:
        """What grows while a side runs: tokens run through the model, CPU seconds of this process and the server's."""
        served = None if self.pid is None else cpu_seconds(self.pid)
        return {"tokens_run": self.tokens_run(), "client_cpu": time.process_time(), "server_cpu": served}

    def as_graphs(self, case: Case, trace: bool = False) -> tuple[float, list[list[str]], dict[str, Any], list[Any]]:
        """Seconds, outputs, figures, and the states."""
        self.flush()
        before, self.endpoint.count = self.counters(), 0
        begin = time.perf_counter()
        states = case.program.run_batch(
            case.items, backend=self.endpoint, num_threads=THREADS, trace=trace, **GREEDY
        )  # complete when they come back
        wall = time.perf_counter() - begin
        usage = [state.usage() for state in states]
        figures: dict[str, Any] = {name: int(sum(u[name] for u in usage)) for name in COUNTS}
        figures["requests"] = self.endpoint.count
        figures |= _difference(before, self.counters())
        return wall, [generated(state) for state in states], figures, states

    def by_requests(self, case: Case) -> tuple[float, list[list[str]], dict[str, Any]]:
        """Seconds, outputs and figures. Threads are started, and connections opened, before the clock is."""
        self.flush()
        client = Requests(self.url)
        before = self.counters()
        with ThreadPoolExecutor(min(len(case.items), THREADS)) as programs, ThreadPoolExecutor(THREADS) as forks:
            begin = time.perf_counter()
            outputs = list(programs.map(lambda item: case.by_requests(client, forks, item), case.items))
            wall = time.perf_counter() - begin
        figures = {**client.sums, "requests": client.count, **_difference(before, self.counters())}
        return wall, outputs, figures

    def joins(self, sizes: Sizes, repeats: int) -> dict[str, Any]:
        """One nested tree, its joins found by the engine and by the client in turns, with a warm cache: milliseconds
        (median), requests, and whether the texts are equal."""
        walls: dict[bool, list[float]] = {True: [], False: []}
        count: dict[bool, int] = {}
        texts: set[str] = set()
        for i in range(2 * repeats + 2):
            self.endpoint.refs, self.endpoint.count = i % 2 == 1, 0
            begin = time.perf_counter()
            state = nested_tree.run(system="Think in steps.\n", n=sizes, backend=self.endpoint, **GREEDY)
            texts.add(state.text())
            walls[self.endpoint.refs].append(1e3 * (time.perf_counter() - begin))
            count[self.endpoint.refs] = self.endpoint.count
        self.endpoint.refs = True
        sides = {
            name: {"ms": statistics.median(walls[refs][1:]), "best_ms": min(walls[refs][1:]), "requests": count[refs]}
            for name, refs in (("engine", True), ("client", False))
        }
        return {**sides, "equal": len(texts) == 1}

    def close(self) -> None:
        self.endpoint.close()
        self.session.close()


def _difference(before: dict[str, float | None], after: dict[str, float | None]) -> dict[str, float | None]:
    return {k: None if a is None or (b := after[k]) is None else b - a for k, a in before.items()}


def cpu_seconds(pid: int) -> float | None:
    """CPU time of a process and all that it started; None where the system does not tell."""
    try:
        total, todo = 0.0, [pid]
        while todo:
            root = Path(f"/proc/{todo.pop()}")
            fields = (root / "stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
            todo += [int(c) for task in (root / "task").iterdir() for c in (task / "children").read_text().split()]
        return total
    except (OSError, ValueError, IndexError):
        return None


def compare(bench: Bench, case: Case, repeats: int, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """Both sides in turns."""
    bench.as_graphs(case)
    bench.by_requests(case)
    graph_walls: list[float] = []
    request_walls: list[float] = []
    ours: Any = None
    theirs: Any = None
    for i in range(repeats):
        for side in ("graphs", "requests") if i % 2 == 0 else ("requests", "graphs"):
            if side == "graphs":
                wall, *ours = bench.as_graphs(case)
                graph_walls.append(wall)
            else:
                wall, *theirs = bench.by_requests(case)
                request_walls.append(wall)
    graphs, by_requests = statistics.median(graph_walls), statistics.median(request_walls)
    ratios = [b / a for a, b in zip(graph_walls, request_walls, strict=True)]
    return {
        "program": case.name,
        "shape": case.shape,
        "programs": len(case.items),
        "graphs": {"wall": graphs, "walls": graph_walls, **ours[1]},
        "requests": {"wall": by_requests, "walls": request_walls, **theirs[1]},
        "ratio": by_requests / graphs,
        "best_ratio": min(request_walls) / min(graph_walls),
        "ratios": [min(ratios), max(ratios)],
        "target": case.target,
        "outputs": agreement(ours[0], theirs[0], bench.as_graphs(case, trace=True)[3], tokenizer),
    }


def agreement(ours: list[list[str]], theirs: list[list[str]], states: list[Any], tokenizer: Any) -> dict[str, int]:
    """How many outputs are equal, and why the others are not."""
    counts = {"all": 0, "equal": 0, "respelled": 0, "follows": 0, "other": 0}
    for mine, other, state in zip(ours, theirs, states, strict=True):
        branches = sorted(state.graph().branches.values(), key=lambda b: (b.parent is None, b.id))
        places = [node for b in branches for node in b.nodes if node.kind in ("gen", "select")]
        differs: set[str] = set()
        for node, a, b in zip(places, mine, other, strict=True):
            counts["all"] += 1
            if a == b:
                counts["equal"] += 1
                continue
            before = {n.address for n in node.branch.lineage() if n.index < node.index or n.branch is not node.branch}
            quoted = {s.address for n in node.branch.nodes[: node.index] if n.source for s in n.source.nodes()}
            if (before | quoted) & differs:
                counts["follows"] += 1
            elif tokenizer is not None and _respelled(node, tokenizer):
                counts["respelled"] += 1
            else:
                counts["other"] += 1
            differs.add(node.address)
    return counts


def prompt_ids(node: Any) -> list[int]:
    """The ids of a node's prompt, put together from what the endpoint told: each result tells those that are new."""
    told = node.meta["prompt_ids"]
    if not told["start"]:
        return list(told["ids"])
    lineage = node.branch.lineage()[: -(len(node.branch.nodes) - node.index)]
    last = next(n for n in reversed(lineage) if n.kind in ("gen", "select"))
    return [*(prompt_ids(last) + list(last.ids or ()))[: told["start"]], *told["ids"]]


def _respelled(node: Any, tokenizer: Tokenizer) -> bool:
    """Whether the text of the prompt has other ids when it is tokenised as one piece."""
    lineage = node.branch.lineage()[: -(len(node.branch.nodes) - node.index)]
    text = "".join(n.text or "" for n in lineage)
    ids = tokenizer.encode(text, start=True)
    if tokenizer.add_bos and tokenizer.bos_id is not None:
        ids = [tokenizer.bos_id, *ids]
    return ids != prompt_ids(node)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="stemma bench programs",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--model", default="demo", help="model directory, or demo (default): the bundled model")
    made.add_argument("--server", default=None, help="use the server at this address instead of starting one")
    made.add_argument(
        "--timed",
        action="store_true",
        help="a clock in the place of the model: a step takes 5 ms and 20 µs for each token, as for an 8B model on an "
        "H200 (best with --scale 2 --prompt-scale 2)",
    )
    made.add_argument("--only", nargs="+", choices=("tree_of_thought", "judge", "form"), help="some of the programs")
    made.add_argument("--scale", type=float, default=4.0, help="divides programs, gens, system text (default: 4)")
    made.add_argument("--prompt-scale", type=float, default=16.0, help="divides each program's text (default: 16)")
    made.add_argument("--programs", type=int, default=None, help="of each kind (default: 64 / scale, 128 of form)")
    made.add_argument(
        "--option", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), help="of the server's engine"
    )
    made.add_argument("--repeats", type=int, default=5, help="timed runs of each side (default: 5)")
    made.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    return made


def main(argv: list[str] | None = None) -> int:
    args = parser().parse_args(argv)
    if args.repeats < 1 or args.scale < 1 or args.prompt_scale < 1:
        print("stemma bench programs: --repeats, --scale and --prompt-scale must be at least 1", file=sys.stderr)
        return 2
    if threading.current_thread() is threading.main_thread():  # one that is told to stop takes its server along
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    tokenizer = Tokenizer.load(EngineConfig(model_path=args.model).model_dir)
    if args.programs is not None and args.programs < 1:
        print("stemma bench programs: --programs must be at least 1", file=sys.stderr)
        return 2
    every = cases(args.scale, args.prompt_scale, tokenizer, programs=args.programs)
    chosen = [case for case in every if not args.only or case.name in args.only]
    options: dict[str, Any] = dict(args.option) | ({"engine_factory": TIMED} if args.timed else {})
    server = None if args.server else Runtime(model_path=args.model, **options)
    url = args.server.rstrip("/") if args.server else server.url  # type: ignore[union-attr]
    bench = Bench(url, None if server is None else server.pid)
    try:
        say = (lambda line: None) if args.json else print
        what = "a clock" if args.timed else args.model
        scales = f"divided by {args.scale:g}, texts by {args.prompt_scale:g}"
        say(f"model {what}, {os.cpu_count()} cores, median of {args.repeats}; {scales}")
        results = []
        for case in chosen:
            results.append(compare(bench, case, args.repeats, tokenizer))
            say(shown(results[-1]))
        joins = bench.joins(Sizes.scaled(args.scale, args.prompt_scale), 4 * args.repeats)
        say("\none nested tree, 3 × 3, three levels of joins: median and best ms, requests")
        for name in ("engine", "client"):
            side = joins[name]
            say(f"  joined by the {name}  {side['ms']:>8.1f}{side['best_ms']:>8.1f}{side['requests']:>4}")
        say(f"  equal texts: {'yes' if joins['equal'] else 'no'}")
        if args.json:
            sizes = {"scale": args.scale, "prompt_scale": args.prompt_scale}
            told = {"model": args.model, "timed": args.timed, **sizes, "programs": results, "joins": joins}
            print(json.dumps(told, indent=1))
    finally:
        bench.close()
        if server is not None:
            server.shutdown()
    return 0


def shown(result: dict[str, Any]) -> str:
    """One program's figures as lines of text."""
    lines = [f"\n{result['program']} × {result['programs']}: {result['shape']}"]
    head = ("wall s", "client", "server", "requests", "run", "prompt", "cached", "made", "forced")
    lines.append("  " + " " * 20 + "".join(f"{h:>10}" for h in head))
    for name, title in (("graphs", "graphs"), ("requests", "request by request")):
        side = result[name]
        counts = (side["requests"], side["tokens_run"], *(side[c] for c in COUNTS))
        cells = "".join(f"{'-' if c is None else c:>10}" for c in counts)
        cpu = "".join(f"{'-' if side[c] is None else format(side[c], '.2f'):>10}" for c in ("client_cpu", "server_cpu"))
        lines.append(f"  {title:<20}{side['wall']:>10.3f}{cpu}{cells}")
    low, high = result["ratios"]
    best = f"of the best runs {result['best_ratio']:.2f} x"
    lines.append(f"  ratio {result['ratio']:.2f} x [{low:.2f}, {high:.2f}], {best}, target {result['target']:g} x")
    o = result["outputs"]
    why = f"{o['respelled']} respelled, {o['follows']} follow those, {o['other']} other"
    lines.append(f"  outputs: {o['equal']} of {o['all']} equal; {why}")
    return "\n".join(lines)
