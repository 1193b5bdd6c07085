"""Prometheus' text format, against lines written by hand."""

import threading

from inverselm.integrations.metrics import Counter, Gauge, Histogram, exposition


def test_counters_gauges_and_histograms_as_text():
    counter = Counter("a_total", "Line\nbreak and \\.")
    histogram = Histogram("b_seconds", "Seconds.", (0.5, 1.0))
    gauge = Gauge("c", "A gauge.", lambda: 2.5)
    assert counter.text().splitlines()[2] == "a_total 0"
    counter.add(path='/x"\\\n', status="200")
    counter.add(2, path='/x"\\\n', status="200")
    counter.add(0.5, path="/y", status="503")
    for value in (0.1, 0.5, 0.75, 7.0):  # a bound is inclusive
        histogram.observe(value, path="/x")
    assert exposition([counter, histogram, gauge]) == (
        "# HELP a_total Line\\nbreak and \\\\.\n"
        "# TYPE a_total counter\n"
        'a_total{path="/x\\"\\\\\\n",status="200"} 3\n'
        'a_total{path="/y",status="503"} 0.5\n'
        "# HELP b_seconds Seconds.\n"
        "# TYPE b_seconds histogram\n"
        'b_seconds_bucket{path="/x",le="0.5"} 2\n'
        'b_seconds_bucket{path="/x",le="1"} 3\n'
        'b_seconds_bucket{path="/x",le="+Inf"} 4\n'
        'b_seconds_sum{path="/x"} 8.35\n'
        'b_seconds_count{path="/x"} 4\n'
        "# HELP c A gauge.\n"
        "# TYPE c gauge\n"
        "c 2.5\n"
    )


def test_threads_do_not_lose_counts():
    counter, histogram = Counter("a", ""), Histogram("b", "", (1,))

    def count():
        for _ in range(2000):
            counter.add(kind="x")
            histogram.observe(2.0)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counter.text().endswith('a{kind="x"} 16000')
    assert histogram.text().splitlines()[-4:] == [
        'b_bucket{le="1"} 0',
        'b_bucket{le="+Inf"} 16000',
        "b_sum 32000",
        "b_count 16000",
    ]
