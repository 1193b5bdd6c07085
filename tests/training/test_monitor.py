"""RunawayMonitor: quiet on noise, one clear sentence for each way a policy runs away."""

from inverselm.training.monitor import RunawayMonitor

START = {"length": 40.0, "truncated": 0.1, "kl": 0.0}


def watching(**options):
    monitor = RunawayMonitor(**options)
    for _ in range(monitor.window):
        assert monitor.update(**START) == []
    return monitor


def after(monitor, rollouts=None, **now):
    """All warnings of `rollouts` more rollouts like `now`."""
    return [text for _ in range(rollouts or monitor.window) for text in monitor.update(**{**START, **now})]


def test_what_stays_is_not_reported():
    monitor = watching()
    assert after(monitor, 20) == []
    assert after(monitor, 20, length=55.0, truncated=0.3, kl=0.4) == []


def test_each_cause_has_its_sentence():
    for now, words in (
        ({"length": 61.0}, ["grown from 40 to 6", "kl_coef"]),
        ({"length": 26.0}, ["shrunk from 40 to 2"]),
        ({"truncated": 0.4}, ["max_completion_length", "at the start 10%"]),
        ({"kl": 0.6}, ["KL to the SFT model", "nats per token"]),
    ):
        (text,) = after(watching(), 10, **now)  # and each is said once
        assert all(word in text for word in words), text


def test_one_odd_rollout_is_noise():
    monitor = watching()
    assert monitor.update(**{**START, "length": 100.0}) == []
    assert after(monitor, 10) == []


def test_it_speaks_again_when_the_cause_comes_back():
    monitor = watching()
    assert len(after(monitor, 10, kl=2.0)) == 1
    assert after(monitor, 10) == []
    assert len(after(monitor, 10, kl=2.0)) == 1


def test_thresholds_and_window_are_options():
    assert after(watching(length_ratio=3.0, kl_limit=1.0, truncated_rise=0.5), length=90.0, kl=0.9, truncated=0.5) == []
    assert len(after(watching(window=1), 1, kl=0.51)) == 1
    assert len(after(watching(window=3), 3, length=130.0)) == 1


def test_several_causes_at_once():
    assert len(after(watching(), 10, length=200.0, truncated=1.0, kl=3.0)) == 3


def test_the_start_is_the_start_and_not_the_last_rollouts():
    """A slow drift is seen too: each rollout is close to the one before."""
    monitor = watching()
    found = [text for i in range(60) for text in monitor.update(**{**START, "length": 40.0 + i})]
    assert len(found) == 1
    assert "grown from 40" in found[0]
