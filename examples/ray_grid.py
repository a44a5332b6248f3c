"""A grid of plans over many machines with Ray Data: every actor holds the model once and answers under all plans.

    pip install torch datasets -e ".[ray]"
    foveate testbed export --out testbed-task --limit 10
    python examples/ray_grid.py --plan divprune:keep=64 --plan "tome:keep=0.5 > divprune:keep=64" --actors 2

Without a cluster it starts one on this machine; with one, set RAY_ADDRESS and put data and results where all of it can
reach them. For data of your own, change the columns, `messages` and `score`.
"""

import argparse
import os

import ray

from foveate import Plan
from foveate.bench.stats import accuracy
from foveate.harness import Answer
from foveate.harness.task import messages, results


def score(row: dict) -> bool:
    """Whether an answer is right."""
    return bool(results(row, [row["answer"]])["accuracy"])


def main() -> None:
    """Answer everything, write one parquet file per block, print one line per plan."""
    parser = argparse.ArgumentParser(description="a grid of plans with Ray Data")
    parser.add_argument(
        "--data", default="testbed-task/testbed.parquet", help="parquet: a file, a folder or an address"
    )
    parser.add_argument("--plan", action="append", required=True, help="repeat; the uncompressed model always runs")
    parser.add_argument("--model", default="testbed", help="testbed, a folder or a hub id")
    parser.add_argument("--actors", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="of each actor")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--out", default="ray-grid", help="folder or address for the answers")
    args = parser.parse_args()
    if os.path.exists(args.out):
        parser.error(f"{args.out} exists: Ray would add to what is in it")
    plans = [None, *(str(Plan.of(plan)) for plan in args.plan)]  # a typing error shows here, not in an actor

    ray.data.DataContext.get_current().execution_options.preserve_order = True
    if "RAY_ADDRESS" in os.environ:
        ray.init()
    else:
        ray.init(include_dashboard=False, object_store_memory=512 * 2**20)
    # Actors that take every core leave none for reading, and everybody waits.
    cores = ray.cluster_resources()["CPU"]
    # What is padded together is settled here, not by who happens to be free: the answers are those of a single process.
    questions = ray.data.read_parquet(args.data).repartition(target_num_rows_per_block=args.batch, strict=True)
    answered = questions.map_batches(
        Answer,
        fn_constructor_kwargs={
            "model": args.model,
            "plans": plans,
            "messages": messages,
            "max_new_tokens": 10,
            "device": "cuda" if args.gpus else "cpu",
        },
        batch_size=args.batch,
        compute=ray.data.ActorPoolStrategy(size=args.actors),
        num_cpus=min(1, 0.5 * cores / args.actors),
        num_gpus=args.gpus,
    )
    answered.write_parquet(args.out)
    rows = ray.data.read_parquet(args.out).take_all()
    print(f"model {args.model}, data {args.data}, {args.actors} actors; 95 % intervals (Wilson)")
    for plan in dict.fromkeys(row["plan"] for row in rows):
        mine = [row for row in rows if row["plan"] == plan]
        found = accuracy([score(row) for row in mine])
        before, after = (sum(row[f"tokens_{when}"] for row in mine) / len(mine) for when in ("before", "after"))
        span = f"{found['accuracy']:.3f} ({found['low']:.3f} - {found['high']:.3f})"
        print(f"{plan}: {span}, n = {found['n']}, visual tokens per question {before:.0f} -> {after:.0f}")
    ray.shutdown()


if __name__ == "__main__":
    main()
