"""Run the demo on several sets of rendered clips: accuracy with spread, event F1 on long videos, seconds per stage.

    python benchmarks/worlds.py --seeds 0 1 2 --out /tmp/worlds

A world is one set of rendered clips; its seed decides scenes, things, sounds and labels. This prints a table and
writes results/worlds.json. After a kill, the same command resumes.
"""

import argparse
import json
from pathlib import Path

from birth import ROOT, birth

from avel.cli import bars, console, mean_and_spread
from avel.demo import demo


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--long-videos", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=32)
    parser.add_argument("--out", type=Path, required=True, help="folder for the rendered clips and the runs")
    parser.add_argument("--results", type=Path, default=ROOT / "results" / "worlds.json")
    arguments = parser.parse_args()

    worlds = []
    for seed in arguments.seeds:
        with bars() as progress:
            result = demo(
                arguments.out / f"world-{seed}",
                clips=arguments.clips,
                long_videos=arguments.long_videos,
                epochs=arguments.epochs,
                seed=seed,
                progress=progress,
            )
        console().print(result.table())
        rows = {row.name.split(" (")[0]: [row.segment_accuracy, row.event_f1] for row in result.rows}
        worlds.append(
            {
                "seed": seed,
                "rows": rows,
                "long_f1": result.long_f1,
                "threshold": result.threshold,
                "seconds": result.seconds,
            }
        )

    summary = {}
    for name in worlds[0]["rows"]:
        accuracies = [world["rows"][name][0] for world in worlds]
        f1s = [world["rows"][name][1] for world in worlds]
        summary[name] = {"segment_accuracy": mean_and_spread(accuracies), "event_f1": mean_and_spread(f1s)}
    summary["CCLN on the long videos"] = {"event_f1": mean_and_spread([world["long_f1"] for world in worlds])}
    content = {
        "title": "Held-out rendered clips: their scenes, instances and voices do not occur in training",
        **birth(),
        "clips": arguments.clips,
        "long_videos": arguments.long_videos,
        "epochs": arguments.epochs,
        "summary": summary,
        "worlds": worlds,
    }
    arguments.results.parent.mkdir(exist_ok=True)
    arguments.results.write_text(json.dumps(content, indent=1) + "\n")
    console().print_json(json.dumps(summary))


if __name__ == "__main__":
    main()
