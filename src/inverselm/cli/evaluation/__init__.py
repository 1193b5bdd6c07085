"""Commands that measure: evaluate, rewards, compare, judge."""
