"""The science of a campaign, called directly: what `benchmarks.workers overhead` compares with.

    python -m benchmarks.bare -n 64 --workers 2

Draws the same crystals (up to 256, a campaign's first batch), relaxes them and judges them, without
database, Prefect and command line.
"""

from __future__ import annotations

import argparse

from flows import inputs
from flows.evaluation import Named, judge
from flows.rows import relax_config
from flows.settings import CampaignConfig
from relax.optimize import standing_by
from symmbfn.known_sites import known_sites
from symmbfn.sample import sample


def main() -> None:
    """Run one and tell how many crystals are metastable."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    n = arguments.n
    config = CampaignConfig(n=n, seed=arguments.seed, workers=arguments.workers)
    inputs.check(config)
    with standing_by(config.potential, relax_config(config)):
        crystals = sample(
            config.checkpoint,
            n,
            seed=config.batch_seed(0),
            steps=config.steps,
            proposals=config.proposals,
            avoid=known_sites(config.reference),
        )
        named = [Named(str(number), one.to_structure()) for number, one in enumerate(crystals)]
        judged = judge(config, named, stability=True)
    print(sum(one.is_metastable for one in judged), "metastable of", n)


if __name__ == "__main__":
    main()
