"""Layouts as process groups: who shares which weights and which tokens."""

from megatron_most.parallel.groups import Groups, seed_generators, start_groups, stop_groups

__all__ = ["Groups", "seed_generators", "start_groups", "stop_groups"]
