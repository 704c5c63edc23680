"""Score the mattes of any method against true alphas of the same names.

python examples/score_folder.py                     # trimaps of a sample set, as crude mattes
python examples/score_folder.py --mattes MATTES --alphas ALPHAS --trimaps TRIMAPS
"""

import argparse
from pathlib import Path

from SDMatte.samples import make_sample_set
from SDMatte.scoring.folder import score_folder
from SDMatte.scoring.report import write_report
from SDMatte.scoring.tables import score_table

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--mattes", help="default: the trimaps of the sample set")
parser.add_argument("--alphas")
parser.add_argument("--trimaps", help="if given, only unknown pixels count")
parser.add_argument("--samples", default="output/examples/samples")
parser.add_argument("--output", type=Path, default=Path("output/examples/score"))
args = parser.parse_args()

if args.mattes is None:
    samples = make_sample_set(args.samples, num_train=12, num_test=8, size=160).root
    args.mattes, args.alphas = samples / "AIM-500/trimap", samples / "AIM-500/mask"
results = {
    protocol: score_folder(args.mattes, args.alphas, args.trimaps, protocol)
    for protocol in ("official", "corrected")
}
print(score_table({name: result.scores for name, result in results.items()}, display=True))
for name, result in results.items():
    write_report(result, args.output / name)
print(f"reports: {args.output}")
