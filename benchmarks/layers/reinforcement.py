"""CrossQ of sb3-contrib on Pendulum-v1, its Batch Renormalization replaced by bioren's.

CrossQ learns without target networks, thanks to normalized critics.  sb3-contrib builds its policy,
and each of its layers is then swapped, before the optimizers see them: `CrossQ(RenormPolicy, ...)`
is `CrossQ("MlpPolicy", ...)` with bioren's layers.

Four policies from the same initial weights, seed by seed:

- "sb3-contrib": untouched; batch normalization for `--warm-up` updates, then r up to 3, d to 5;
- "bioren": the same momentum, eps and jump.  What is left of a difference: bioren normalizes by
  the biased variance (sb3-contrib: the unbiased one) and adds eps once (sb3-contrib: twice);
- "bioren, ramp": limits widen linearly, from the warm-up to four times the warm-up;
- "no renorm": limits (1, 0), that is plain batch normalization, to tell what the layer is for.

sb3-contrib's warm-up of 100,000 updates is longer than these runs; 1,000 lets renormalization
act for most of a run.  (The actor is updated every third step, and counts its own updates.)
Learning rate 1e-3, batch 256 and all else are sb3-contrib's defaults; the networks are smaller,
64 x 64 for the actor and 128 x 128 for the critics, to fit a CPU.  The return is that of the
deterministic policy over 10 episodes of an environment of its own, every 1,000 steps; "final" is
the mean of the last three.  "Steps to -200" is the first evaluation above -200.  Seconds are CPU
time of learning (one thread), evaluation left out.

    python benchmarks/layers/reinforcement.py [--seeds 5] [--steps 8000]
"""

from __future__ import annotations

import time

import gymnasium as gym
import numpy as np
import torch
from common import figure, interval, parser, plus_minus, save, set_up, show
from sb3_contrib import CrossQ
from sb3_contrib.common.torch_layers import BatchRenorm1d as TheirRenorm
from sb3_contrib.crossq.policies import Actor, CrossQCritic, CrossQPolicy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.evaluation import evaluate_policy

from bioren.nn import BatchRenorm1d, LinearLimits, StepLimits

SOLVED = -200  # a Pendulum that swings up and stays is at -150 on average


def jump(theirs):
    """Return the limits that sb3-contrib's layer has: free right after its warm-up."""
    return StepLimits(((theirs.warmup_steps + 1, theirs.rmax, theirs.dmax),))


def ramp(theirs):
    """Return limits that widen linearly instead."""
    end = 4 * theirs.warmup_steps
    return LinearLimits(theirs.warmup_steps, end, end, theirs.rmax, theirs.dmax)


def never(theirs):
    """Return the limits of plain batch normalization."""
    return 1.0, 0.0


def swapped(module, limits):
    """Replace each of sb3-contrib's layers in `module` by bioren's with the same values."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if isinstance(layer, TheirRenorm):
                setattr(parent, name, renorm(layer, limits(layer)))
    return module


def renorm(theirs, limits):
    """Return bioren's layer with the options, parameters and statistics of sb3-contrib's."""
    ours = BatchRenorm1d(
        theirs.num_features,
        theirs.eps,
        theirs.momentum,
        theirs.affine,
        limits=limits,
        initial="unit",
    )
    with torch.no_grad():
        if theirs.affine:
            ours.weight.copy_(theirs.scale)
            ours.bias.copy_(theirs.bias)
        ours.running_mean.copy_(theirs.ra_mean)
        ours.running_var.copy_(theirs.ra_var)
        ours.num_batches_tracked.copy_(theirs.steps)
    return ours.train(theirs.training)


class Switch:
    """CrossQ switches its layers by their class; this does it for bioren's."""

    def set_bn_training_mode(self, mode):
        for module in self.modules():
            if isinstance(module, BatchRenorm1d):
                module.train(mode)


class RenormActor(Switch, Actor):
    pass


class RenormCritic(Switch, CrossQCritic):
    pass


class RenormPolicy(CrossQPolicy):
    """CrossQ's policy with bioren's layers."""

    limits = staticmethod(jump)

    def make_actor(self, features_extractor=None):
        options = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return swapped(RenormActor(**options), self.limits).to(self.device)

    def make_critic(self, features_extractor=None):
        options = self._update_features_extractor(self.critic_kwargs, features_extractor)
        return swapped(RenormCritic(**options), self.limits).to(self.device)


class RampPolicy(RenormPolicy):
    limits = staticmethod(ramp)


class PlainPolicy(RenormPolicy):
    limits = staticmethod(never)


POLICIES = {
    "sb3-contrib": CrossQPolicy,
    "bioren": RenormPolicy,
    "bioren, ramp": RampPolicy,
    "no renorm": PlainPolicy,
}


class Evaluation(BaseCallback):
    """Mean return of the deterministic policy every `every` steps, and CPU time without it."""

    def __init__(self, every, seed, episodes=10):
        super().__init__()
        self.every, self.episodes = every, episodes
        self.env = gym.make("Pendulum-v1")
        self.env.reset(seed=10_000 + seed)
        self.returns, self.seconds = [], 0.0

    def _on_training_start(self):
        self.started = time.process_time()

    def _on_step(self):
        if self.num_timesteps % self.every == 0:
            now = time.process_time()
            self.seconds += now - self.started
            self.returns.append(self._mean_return())
            self.started = time.process_time()
        return True

    def _mean_return(self):
        # Evaluation draws no random numbers of torch, so that learning goes on undisturbed.
        mean, _ = evaluate_policy(self.model, self.env, self.episodes, warn=False)
        return float(mean)


def model(policy, seed, warm_up):
    return CrossQ(
        policy,
        gym.make("Pendulum-v1"),
        buffer_size=50_000,
        policy_kwargs={
            "net_arch": {"pi": [64, 64], "qf": [128, 128]},
            "renorm_warmup_steps": warm_up,
        },
        seed=seed,
        device="cpu",
    )


def run(policy, seed, options):
    """Return the returns at each evaluation and CPU seconds per 1,000 steps."""
    set_up(seed)
    agent = model(policy, seed, options.warm_up)
    watch = Evaluation(options.every, seed, options.episodes)
    agent.learn(options.steps, callback=watch)
    return np.array(watch.returns), watch.seconds / len(watch.returns) / options.every * 1000


def largest_difference_at_start():
    """Return how far Q-values and actions of the swapped networks are before training."""
    theirs, ours = (model(p, 0, 1).policy for p in (CrossQPolicy, RenormPolicy))
    for policy in (theirs, ours):
        policy.set_training_mode(False)
    generator = torch.Generator().manual_seed(0)
    seen = torch.randn(256, 3, generator=generator)
    done = torch.rand(256, 1, generator=generator) * 2 - 1
    with torch.no_grad():
        pairs = [(theirs.actor(seen, True), ours.actor(seen, True))]
        pairs += zip(theirs.critic(seen, done), ours.critic(seen, done), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def steps_to(returns, every, level=SOLVED):
    """Return the steps of the first evaluation above `level`, or NaN."""
    above = np.flatnonzero(returns > level)
    return (above[0] + 1) * every if len(above) else np.nan


def row(name, curves, seconds, reference, every):
    final = curves[:, -3:].mean(axis=1)
    reached = np.array([steps_to(curve, every) for curve in curves])
    return {
        "layers": name,
        "final return": plus_minus(final, 0),
        "worst seed": f"{final.min():.0f}",
        "difference by seed": plus_minus(final - reference, 0) if name != "sb3-contrib" else "",
        f"steps to {SOLVED}": f"{np.nanmedian(reached):.0f}" if (reached > 0).any() else "never",
        "seeds there": f"{int((reached > 0).sum())} of {len(reached)}",
        "s per 1,000 steps": plus_minus(seconds, 2),
    }


def draw(results, every, path):
    fig, ax = figure(figsize=(7, 4))
    for name, (curves, _) in results.items():
        mean, half = np.array([interval(column) for column in curves.T]).T
        steps = every * np.arange(1, len(mean) + 1)
        (line,) = ax.plot(steps, mean, label=name)
        ax.fill_between(steps, mean - half, mean + half, color=line.get_color(), alpha=0.15, lw=0)
    ax.axhline(SOLVED, color="gray", lw=0.8, ls=":")
    ax.set(xlabel="steps in the environment", ylabel="return of the deterministic policy")
    ax.set_title(f"CrossQ on Pendulum-v1, mean and 95% interval of {len(curves)} seeds")
    ax.set_ylim(bottom=-1700, top=0)
    ax.legend(frameon=False, loc="lower right")
    save(fig, path)


def main(options):
    print(f"largest difference before training: {largest_difference_at_start():.1e}", flush=True)
    found = {name: ([], []) for name in POLICIES}
    for seed in range(options.seeds):
        for name, policy in POLICIES.items():
            returns, seconds = run(policy, seed, options)
            found[name][0].append(returns)
            found[name][1].append(seconds)
            print(f"seed {seed}, {name}: {returns[-3:].mean():.0f}", flush=True)
    results = {name: (np.array(c), np.array(s)) for name, (c, s) in found.items()}
    reference = results["sb3-contrib"][0][:, -3:].mean(axis=1)
    rows = [row(name, *result, reference, options.every) for name, result in results.items()]
    show(rows, options.output / "reinforcement.csv", f"Pendulum-v1, {options.steps:,} steps")
    draw(results, options.every, options.output / "reinforcement.png")


if __name__ == "__main__":
    arguments = parser(__doc__)
    arguments.add_argument("--steps", type=int, default=8_000)
    arguments.add_argument("--warm-up", type=int, default=1_000, help="updates of plain BN")
    arguments.add_argument("--every", type=int, default=1_000, help="steps between evaluations")
    arguments.add_argument("--episodes", type=int, default=10, help="episodes per evaluation")
    chosen = arguments.parse_args()
    if chosen.quick:
        chosen.seeds, chosen.steps, chosen.warm_up = 2, 300, 50
        chosen.every, chosen.episodes = 150, 1
    main(chosen)
