"""Score the mattes of any method against true alphas with the same names.

python examples/score_folder.py --mattes MATTES --alphas ALPHAS --trimaps TRIMAPS
"""

import argparse
from pathlib import Path

from SDMatte.samples import make_sample_set
from SDMatte.scoring.folder import score_folder
from SDMatte.scoring.report import write_report
from SDMatte.scoring.tables import score_table

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--mattes", help="default: the trimaps of a sample set, as crude mattes")
parser.add_argument("--alphas")
parser.add_argument("--trimaps", help="if given, score unknown pixels only")
parser.add_argument("--samples", default="output/examples/samples")
parser.add_argument("--output", type=Path, default=Path("output/examples/score"))
args = parser.parse_args()

if args.mattes is None:
    samples = make_sample_set(args.samples, num_train=12, num_test=8, size=160).root
    args.mattes, args.alphas = samples / "AIM-500/trimap", samples / "AIM-500/mask"
folders = args.mattes, args.alphas, args.trimaps
results = {name: score_folder(*folders, name) for name in ("official", "corrected")}
print(score_table({name: result.scores for name, result in results.items()}, display=True))
for name, result in results.items():
    write_report(result, args.output / name)
print(f"reports: {args.output}")
