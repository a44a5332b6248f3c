"""The load test: servers with and without compression in turns, at several concurrencies, and what their memory does.

A ratio compares runs of one round. What a server was asked before counts for its memory, so the points say after how many
requests they were taken.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from ...errors import PlanError, UnsupportedError, require
from ...plan import Plan
from .servers import HOST, Server, Starting, found, free_port, loopback, running
from .traffic import Body, bodies, numbers, pictures, run

PLAIN = "uncompressed"
NEUTRAL = "stride:keep=1.0"  # keeps every token of any model, and does not ask what is in it
BOUNDS = {
    "concurrency": (1, 256), "requests": (1, 2000), "rounds": (1, 20), "new_tokens": (1, 4096), "soak": (0, 20000),
    "warm_up": (0, 2000), "side": (28, 2048),
}  # fmt: skip
LONGEST = 4096  # tokens of a context that vLLM makes room for; prompts here are short
OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}  # a folder holds all there is to load
VLLM_ON_CPU = {"VLLM_CPU_KVCACHE_SPACE": "1"}  # GiB
LEAST_SOAK = 200  # fewer requests leave less than three points for the line
SOAKING = 4  # clients of a soak
METRICS = (
    "first_token_p50", "first_token_p95", "latency_p50", "latency_p95", "requests_per_second",
    "output_tokens_per_second", "prompt_tokens", "output_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Variant:
    """One thing to measure on a server: a label for the table, and the fields that its requests carry besides."""

    label: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Session:
    """How to start a server (or to find it), and the variants that take turns on it."""

    start: Callable[[], Starting]
    variants: Sequence[Variant]


@dataclass(frozen=True)
class Load:
    """How much is asked, and in which steps.

    Attributes:
        concurrency: clients at once; one run for each.
        requests: of a run.
        rounds: of all variants; every second one goes backwards.
        new_tokens: longest answer.
        soak: requests after the last round, by four clients, to watch the memory; 0 for none.
        warm_up: requests before each run that are not counted.
        side: of the square pictures, in pixels.
        timeout: seconds after which a request is an error.

    Raises:
        UnsupportedError: if one of them is out of bounds: a load test has an end.
    """

    concurrency: tuple[int, ...] = (1, 4, 16)
    requests: int = 64
    rounds: int = 2
    new_tokens: int = 8
    soak: int = 0
    warm_up: int = 4
    side: int = 336
    timeout: float = 300.0

    def __post_init__(self) -> None:
        for name, (least, most) in BOUNDS.items():
            given = getattr(self, name)
            for value in given if isinstance(given, tuple) else [given]:
                if not least <= value <= most:
                    raise UnsupportedError(
                        f"{name.replace('_', ' ')}: {value}", where="load test", hint=f"{least} to {most}"
                    )
        if not self.concurrency:
            raise UnsupportedError("no concurrency to measure at", where="load test", hint="1,4,16")
        if 0 < self.soak < LEAST_SOAK:
            raise UnsupportedError(
                f"soak: {self.soak}", where="load test", hint=f"{LEAST_SOAK} or more: a line needs three points"
            )


def vllm(folder: Path, plan: Plan | None, dtype: str, more: Sequence[str] = (), wait: float = 600.0) -> Starting:
    """vLLM's server on a model's folder, with or without the key ``foveate``; see :func:`running`.

    Its cache of prepared pictures is off: no picture comes twice, and a cache that fills looks like a leak.
    """
    import torch

    port, cpu = free_port(), not torch.cuda.is_available()
    line = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--host", HOST,
        "--port", str(port), "--dtype", dtype, "--max-model-len", str(_context(folder)), "--no-enable-prefix-caching",
        "--mm-processor-cache-gb", "0", "--served-model-name", "model", *["--enforce-eager"] * cpu,
    ]  # fmt: skip
    if plan is not None:
        # In a plan's text, positions are as usual for the server; LLaVA in vLLM has no others.
        said = str(plan) if plan.positions == "original" else plan.to_dict()
        line += ["--hf-overrides", json.dumps({"foveate": said})]
    return running("vllm", [*line, *more], f"http://{HOST}:{port}", OFFLINE | (VLLM_ON_CPU if cpu else {}), wait)


def foveate(folder: Path, plans: Sequence[str], dtype: str, more: Sequence[str] = (), wait: float = 600.0) -> Starting:
    """``foveate serve`` on a model's folder; requests choose between the plans, or files of plans. See :func:`running`."""
    port = free_port()
    line = [sys.executable, "-m", "foveate.cli", "serve", str(folder), "--name", "model", "--dtype", dtype]
    line += [word for plan in plans for word in ("--plan", plan)]
    line += ["--max-in-flight", "512", "--host", HOST, "--port", str(port), *more]
    return running("foveate", line, f"http://{HOST}:{port}", OFFLINE, wait)


def _context(folder: Path) -> int:
    """Tokens that vLLM makes room for in its cache."""
    config = json.loads((folder / "config.json").read_text())
    return min(LONGEST, config.get("text_config", config).get("max_position_embeddings", LONGEST))


def sessions_of(
    server: str,
    folder: Path,
    plans: Sequence[str | Plan],
    load: Load,
    dtype: str = "float32",
    more: Sequence[str] = (),
    wait: float = 600.0,
) -> list[Session]:
    """What to start for a server with and without compression.

    vLLM has one plan for all requests: each variant is a server of its own, and the first has no plan. Answers have their
    full length there. Of ``foveate serve`` one server offers all plans, and requests name theirs; the uncompressed
    model is a plan that keeps everything.

    Args:
        server: "vllm" or "foveate".
        folder: of the model.
        plans: text, or plans.
        load: what will be asked.
        dtype: that the server computes in.
        more: options of the server's command.
        wait: seconds that a server may take to start.

    Raises:
        PlanError, KeepError: a plan that cannot be read; plans of ``foveate serve`` that number tokens differently.
    """
    read = list({str(plan): plan for plan in map(Plan.of, plans)}.values())
    if server == "vllm":
        fields = {"ignore_eos": True, "min_tokens": load.new_tokens}
        return [
            Session(partial(vllm, folder, plan, dtype, more, wait), [Variant(str(plan or PLAIN), fields)])
            for plan in (None, *read)
        ]
    if len(numbered := {plan.positions for plan in read}) > 1:
        raise PlanError(f"plans with positions {', '.join(sorted(numbered))}", hint="one server numbers in one way")
    options = [word for name in numbered - {"original"} for word in ("--positions", name)]
    asked = {PLAIN: str(Plan.of(NEUTRAL))} | {str(plan): str(plan) for plan in read}
    start = partial(foveate, folder, list(dict.fromkeys(asked.values())), dtype, [*options, *more], wait)
    return [Session(start, [Variant(label, {"foveate": {"plan": plan}}) for label, plan in asked.items()])]


def sessions_at(url: str, server: str, wait: float = 10.0) -> list[Session]:
    """A server that runs already, as it is; ``foveate serve`` is also asked for everything.

    Args:
        url: on the loopback interface.
        server: "foveate" if it is one that was started with ``--cap 1.0``; else "".
        wait: seconds until it must be ready.

    Raises:
        UnsupportedError: an address elsewhere.
    """
    start = partial(found, loopback(url), wait)
    whole = [Variant(PLAIN, {"foveate": {"keep": 1.0}})] if server == "foveate" else []
    return [Session(start, [*whole, Variant("as served")])]


def measure_load(
    sessions: Sequence[Session],
    load: Load,
    *,
    tick: Callable[[str, int, int], None] | None = None,
    save: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Round after round, start each server, and ask it at each concurrency, after a warm-up.

    Args:
        sessions: the servers, and what runs on them.
        load: how much is asked.
        tick: called with (what is next, runs done, runs in all).
        save: called with the result so far after each server.

    Returns:
        "load", "server" (what the first one says of itself), "runs" (:func:`foveate.bench.load.traffic.numbers` of each),
        "rows" (:func:`summary`), "memory" (per server and round: points (requests so far, MiB)) and "soak" (per server,
        of its last variant: numbers of the run, points, and their :func:`drift`). A server that was not started here has
        no memory.

    Raises:
        UnsupportedError: if a server does not start, or ends while it is asked.
        MissingExtraError: without the package openai, and for a soak without scipy.
    """
    require("openai", "serve")
    if load.soak:
        require("scipy.stats", "report")
    result: dict[str, Any] = {"load": asdict(load), "server": {}, "runs": [], "rows": [], "memory": [], "soak": []}
    total = load.rounds * len(load.concurrency) * sum(len(session.variants) for session in sessions)
    sent = 0

    def requests(server: Server, variant: Variant, count: int) -> list[Body]:
        nonlocal sent
        sent += count
        return bodies(server.model, pictures(count, load.side, sent - count), load.new_tokens, variant.fields)

    def tell(what: str) -> None:
        if tick is not None:
            tick(what, len(result["runs"]), total)

    for turn in range(load.rounds):
        way = -1 if turn % 2 else 1
        for session in list(sessions)[::way]:
            label = session.variants[0].label if len(session.variants) == 1 else "all variants"
            tell(f"{label}: waiting for the server")
            with session.start() as server:
                result["server"] = result["server"] or server.about()
                memory = Memory(server)
                for clients in load.concurrency:
                    for variant in list(session.variants)[::way]:
                        tell(f"{variant.label}: {clients} at once")
                        memory.skip(run(server.url, requests(server, variant, load.warm_up), clients, load.timeout)[0])
                        asked = requests(server, variant, load.requests)
                        outcomes, seconds = run(server.url, asked, clients, load.timeout, memory.look)
                        memory.skip(outcomes)
                        memory.look()
                        server.check()
                        named = {"label": variant.label, "round": turn, "concurrency": clients}
                        result["runs"].append(named | numbers(outcomes, seconds))
                if memory.points:
                    result["memory"].append({"server": label, "round": turn, "points": memory.points})
                if load.soak and turn == load.rounds - 1:
                    tell(f"{label}: {load.soak} requests for the memory")
                    asked = requests(server, session.variants[-1], load.soak)
                    result["soak"].append(_soak(server, session.variants[-1].label, asked, load.timeout))
            result["rows"] = summary(result["runs"])
            if save is not None:
                save(result)
    return result


class Memory:
    """Points of a server's memory over what it was asked."""

    def __init__(self, server: Server) -> None:
        self.server, self.asked, self.points = server, 0, list[tuple[int, float]]()

    def skip(self, outcomes: Sequence[Any]) -> None:
        """A run is over."""
        self.asked += len(outcomes)

    def look(self, done: int = 0) -> None:
        """Note the memory, after ``done`` requests of the present run."""
        place, size = self.asked + done, self.server.memory()
        if size is not None and (not self.points or self.points[-1][0] < place):
            self.points.append((place, size))


def _soak(server: Server, label: str, asked: Sequence[Body], timeout: float) -> dict[str, Any]:
    memory = Memory(server)
    memory.look()
    outcomes, seconds = run(server.url, asked, SOAKING, timeout, memory.look)
    server.check()
    found = {"label": label, "concurrency": SOAKING} | numbers(outcomes, seconds)
    return found | ({"points": memory.points, "line": drift(memory.points)} if memory.points else {})


def summary(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per concurrency and variant: medians over rounds, and ratios to the uncompressed run of the same round.

    Returns:
        Rows with "label", "concurrency", "rounds", "requests", "answered" and "errors" (sums), and per metric "median" and,
        where there is something to compare with, "over" (median of the ratios) and "range" (least and largest ratio).
    """
    rows = []
    plain = {(one["round"], one["concurrency"]): one for one in runs if one["label"] == PLAIN}
    labels = sorted(dict.fromkeys(one["label"] for one in runs), key=lambda label: label != PLAIN)
    for clients, label in itertools.product(dict.fromkeys(one["concurrency"] for one in runs), labels):
        mine = [one for one in runs if (one["label"], one["concurrency"]) == (label, clients)]
        row: dict[str, Any] = {
            "label": label, "concurrency": clients, "rounds": len(mine),
            "requests": sum(one["requests"] for one in mine), "answered": sum(one["answered"] for one in mine),
            "errors": dict(sum((Counter(one["errors"]) for one in mine), Counter())),
        }  # fmt: skip
        for name in METRICS:
            pairs = [(one.get(name), plain.get((one["round"], clients), {}).get(name)) for one in mine]
            if known := [value for value, _ in pairs if value is not None]:
                row[name] = {"median": median(known)}
            if label != PLAIN and (ratios := [value / base for value, base in pairs if value is not None and base]):
                row[name] |= {"over": median(ratios), "range": [min(ratios), max(ratios)]}
        rows.append(row)
    return rows


def drift(points: Sequence[tuple[int, float]]) -> dict[str, Any] | None:
    """A straight line through the last two thirds of a soak.

    The interval takes what is left of the points as independent. Memory comes in steps, so it is rather too narrow.

    Args:
        points: (requests so far, MiB).

    Returns:
        "mib_per_100" requests with its 95 % interval, "low" and "high", and the number of "points"; None for fewer than
        three.

    Raises:
        MissingExtraError: without scipy.
    """
    stats = require("scipy.stats", "report")
    late = [(x, y) for x, y in points if 3 * x > points[-1][0]]
    if len(late) < 3:
        return None
    line = stats.linregress([x for x, _ in late], [y for _, y in late])
    slope, half = float(line.slope), float(stats.t.ppf(0.975, len(late) - 2) * line.stderr)
    low, high = 100 * (slope - half), 100 * (slope + half)
    return {"mib_per_100": 100 * slope, "low": low, "high": high, "points": len(late)}
