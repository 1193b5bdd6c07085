"""Token rewards for other people's stacks. Light on import: each module loads what it needs when it is used.

`batching`, `metrics`, `rows`, `scoring`, `openrlhf`, `openapi`, `server`: the HTTP service of `inverselm serve`.
`trl`: a reward function of stock trainers. `verl`: a tensor and reward managers.
"""
