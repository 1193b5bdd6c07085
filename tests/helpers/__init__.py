"""Plain helpers of the tests: tiny models and naive references."""
