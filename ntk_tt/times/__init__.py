"""From curves to times: when a level is reached, how wrong that was on tuning runs, and what a
run's first losses add.

Comes in: steps and losses, predicted or observed. Goes out: steps with intervals and chances.
"""
