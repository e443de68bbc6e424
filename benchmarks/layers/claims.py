"""Each claim of the article on Batch Renormalization, measured by simulation.

    python benchmarks/layers/claims.py [--seeds 8] [--only scale moments ...] [--quick]

- scale: BatchNorm's output and loss do not change with the scale of the weights before it; what
  becomes of this with Batch Renormalization.
- moments: the error of a minibatch's variance, 2/(B-1), and E[(z_train - z_test)²], 3/(2B).
- gradients: with frozen statistics, with a minibatch's, renormalized: how they differ, unit by
  unit and in the mean over all minibatches (a small layer whose gradient over 131,072 rows is
  the truth).
- bridge: z_infer = r z_train + d, and how r and d spread.
- training: limits at once, later, or never, on scikit-learn's digits: a network of three
  convolutions, SGD (momentum 0.9; rate 0.03, and 0.3 as a trial of stability), 16 images per step
  in micro-batches of 2 or 4; "far off" has pixels from 200 to 250, with the running statistics of
  all layers at mean 0 and variance 1.  Nothing is tuned; all have the same seeds and images.
- mixing: one map from instance to batch statistics.

A row agrees if what is expected lies within twice the half-width of the 95% interval (over blocks
of minibatches or over seeds) or within 1%; "about" is taken as within 5%.
"""

from __future__ import annotations

from article.bridges import identity_claims, mixing_claims, spread_claims
from article.gradients import bias_claims, ratio_claims
from article.moments import mismatch_claims, variance_claims
from article.scale import scale_claims
from article.training import first_batch_claims, training_claims
from common import parser, seconds, show

PARTS = {
    "scale": (scale_claims,),
    "moments": (variance_claims, mismatch_claims),
    "gradients": (ratio_claims, bias_claims),
    "bridge": (identity_claims, spread_claims),
    "mixing": (mixing_claims,),
    "training": (first_batch_claims, training_claims),
}


def main() -> None:
    options = parser(__doc__, seeds=8)
    options.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts")
    args = options.parse_args()
    if args.quick:
        args.seeds = 2
    rows = []
    for part in args.only:
        for measure in PARTS[part]:
            rows += measure(args)
        print(f"{part}: done after {seconds():.0f} s", flush=True)
    complete = len(args.only) == len(PARTS)
    name = "claims.csv" if complete else f"claims_{'_'.join(args.only)}.csv"
    show(rows, args.output / name, "The article's claims")


if __name__ == "__main__":
    main()
