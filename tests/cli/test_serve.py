"""`inverselm serve`: its flags, and a whole server as a process of its own that is told to stop."""

import http.client
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from helpers.processes import environment, kill
from inverselm.cli import listening, serve
from inverselm.cli.main import main
from inverselm.errors import UserError
from inverselm.scorers import QFunctionReward, TokenReward

from .conftest import SUMS

ROWS = [{"prompt": row["prompt"], "completion": row["completion"]} for row in SUMS]


def post(port, path, content):
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
        connection.request("POST", path, json.dumps(content))
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def get(port, path):
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=120)) as connection:
        connection.request("GET", path)
        return connection.getresponse().read().decode()


# ---- a process -------------------------------------------------------------------------------------------------------
@pytest.fixture
def started(desk):
    """Start `inverselm serve` on a free port; gives the process and the port."""
    processes = []

    def start(*flags):
        command = [sys.executable, "-m", "inverselm", "serve", "--port", "0", "--device", "cpu", *flags]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            start_new_session=True,
        )
        processes.append(process)
        for line in process.stdout:
            if found := re.match(r"Listening on http://127\.0\.0\.1:(\d+) ", line):
                return process, int(found[1])
        raise AssertionError(process.stderr.read())

    yield start
    for process in processes:
        kill(process)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_waits_for_what_was_accepted(started, number):
    process, port = started("--model_name_or_path", "sft", "--max_wait_ms", "4000", "--batch_size", "64")
    with ThreadPoolExecutor(len(ROWS)) as pool:
        futures = [pool.submit(post, port, "/v1/token_rewards", row) for row in ROWS]
        while json.loads(get(port, "/health"))["queued_rows"] < len(ROWS) and not any(f.done() for f in futures):
            time.sleep(0.01)
        waiting = not any(future.done() for future in futures)
        process.send_signal(number)
        while _listens(port):
            time.sleep(0.01)
        replies = [future.result(120) for future in futures]
    assert waiting, "all of them came within --max_wait_ms, and were answered after the signal"
    assert process.wait(120) == 0
    assert process.stdout.read() == "Stopped: every accepted request was answered.\n"
    assert process.stderr.read() == ""
    expected = TokenReward.from_checkpoints("sft", device="cpu").score(*columns())
    for (status, content), want in zip(replies, expected, strict=True):
        assert status == 200
        assert content["rows"][0]["rewards"] == pytest.approx(want.rewards, abs=2e-5)


def _listens(port):
    try:
        socket.create_connection(("127.0.0.1", port), timeout=10).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return False
    return True


def columns():
    return [row["prompt"] for row in ROWS], [row["completion"] for row in ROWS]


# ---- its flags -------------------------------------------------------------------------------------------------------
@pytest.fixture
def flags(monkeypatch):
    """Run the command up to where it would listen; gives its service."""

    def made(*argv):
        found = []
        monkeypatch.setattr(serve, "serve", lambda service, listener: found.append(service) or True)
        assert main(["serve", "--port", "0", "--device", "cpu", *argv]) == 0
        found[0].close()
        return found[0]

    return made


def scored(service, rows):
    """By what the worker thread would have called."""
    asked = service.reader.read(json.dumps({"rows": rows}).encode())
    return [row.rewards for row in service.batcher._work(asked.rows)]


@pytest.mark.parametrize(
    ("argv", "scorer"),
    [
        ("--model_name_or_path sft", lambda: TokenReward.from_checkpoints("sft")),
        ("--model_name_or_path nobase --baseline sft/baseline", lambda: TokenReward.from_checkpoints("sft")),
        ("--model_name_or_path sft --centre_rewards", lambda: TokenReward.from_checkpoints("sft", centred=True)),
        (
            "--model_name_or_path sft --reward_floor 0.5 --reward_clip_low -0.1 --reward_clip_high 0.2",
            lambda: TokenReward.from_checkpoints("sft", floor_alpha=0.5, clip_range=(-0.1, 0.2)),
        ),
        (
            "--model_name_or_path sft --reward bellman --gamma 0.5",
            lambda: QFunctionReward.from_checkpoint("sft", gamma=0.5),
        ),
        ("--model_name_or_path sft --reward log_prob", lambda: QFunctionReward.from_checkpoint("sft", kind="log_prob")),
    ],
)
def test_the_flags_of_score_give_the_rewards_of_score(desk, flags, argv, scorer):
    found = scored(flags(*shlex.split(argv)), ROWS[:6])
    expected = scorer().score(*(column[:6] for column in columns()))
    for rewards, want in zip(found, expected, strict=True):
        assert rewards == pytest.approx(want.rewards, abs=2e-5)


def test_an_iqlearn_folder_brings_its_reward_and_discount(desk, flags):
    import shutil

    from inverselm.scorers.markers import write_marker

    shutil.copytree(desk / "nobase", desk / "iq")
    write_marker(desk / "iq", "iqlearn", gamma=0.5, td_coef=0.1)
    service = flags("--model_name_or_path", "iq")
    assert (service.settings.reward_kind, service.settings.baselines) == ("bellman", ())
    (want,) = QFunctionReward.from_checkpoint("iq", gamma=0.5).score(*(column[:1] for column in columns()))
    assert scored(service, ROWS[:1])[0] == pytest.approx(want.rewards, abs=2e-5)


def test_limits_and_names_arrive(desk, flags, monkeypatch, capsys):
    monkeypatch.setenv("THE_KEY", " sesame\n")
    service = flags(
        *shlex.split(
            "--model_name_or_path sft --api_key_env THE_KEY --batch_size 3 --max_batch_tokens 100 --max_padding 0.5 "
            "--max_wait_ms 7 --max_queue 50 --max_rows 5 --max_row_tokens 20 --max_body_mb 0.5 --request_timeout 9 "
            "--sequence_reward mean --add_eos False"
        )
    )
    settings, reader, batcher = service.settings, service.reader, service.batcher
    assert (settings.api_key, settings.timeout, settings.max_body, settings.mean) == ("sesame", 9.0, 2**19, True)
    assert (settings.model, settings.reward_kind, settings.baselines) == ("sft", "log_ratio", ("sft/baseline",))
    assert (batcher.max_rows, batcher.max_tokens, batcher.max_padding) == (3, 100, 0.5)
    assert (batcher.max_wait, batcher.max_queue) == (0.007, 50)
    assert (reader.max_rows, reader.max_row_tokens, reader.add_eos) == (5, 20, False)
    assert reader.positions == 96
    assert reader.vocab_size == json.loads((desk / "sft/config.json").read_text())["vocab_size"]
    assert "sesame" not in "".join(capsys.readouterr())


def test_strangers_are_warned_of(desk, flags, monkeypatch, capsys):
    assert flags("--model_name_or_path", "sft").settings.local
    assert capsys.readouterr().err == ""
    assert not flags("--model_name_or_path", "sft", "--host", "0.0.0.0").settings.local
    assert "Warning: --host 0.0.0.0 is not this machine alone, and anyone who reaches it" in capsys.readouterr().err
    monkeypatch.setenv("KEY", "x")
    flags("--model_name_or_path", "sft", "--host", "0.0.0.0", "--api_key_env", "KEY")
    assert "the key travel unencrypted" in capsys.readouterr().err


MODEL = "--model_name_or_path sft"
BAD = [
    ("", "no model: pass --model_name_or_path"),
    ("--model_name_or_path nobase", "No baseline found in nobase|--baseline"),
    (f"{MODEL} --port 70000", "--port is 70000"),
    (f"{MODEL} --host nowhere.invalid", "--host nowhere.invalid: is no address of this machine"),
    (f"{MODEL} --host 192.0.2.1", "--host 192.0.2.1 --port 8080: cannot listen there"),
    (f"{MODEL} --gamma 2", "--gamma is 2.0"),
    (f"{MODEL} --reward bellman --baseline sft/baseline", "no part in --reward bellman"),
    (f"{MODEL} --reward bellman --centre_rewards", "--centre_rewards is an option of the log_ratio reward"),
    (f"{MODEL} --reward log_prob --reward_clip_low -1", "--reward_clip_low is an option of the log_ratio"),
    (f"{MODEL} --baseline othertok/baseline", "have different tokenizers"),
    (f"{MODEL} --baseline nobase", "hold identical weights"),
    (f"{MODEL} --reward_floor 0", "--reward_floor is 0.0"),
    (f"{MODEL} --reward_clip_low 1", "--reward_clip_low must be at most 0"),
    (f"{MODEL} --max_rows 9 --max_queue 8", "--max_rows 9 is more than --max_queue 8"),
    (f"{MODEL} --batch_size 0", "--batch_size is 0"),
    (f"{MODEL} --max_row_tokens 0", "--max_row_tokens is 0"),
    (f"{MODEL} --max_padding 2", "--max_padding is 2.0"),
    (f"{MODEL} --max_wait_ms -1", "--max_wait_ms is -1.0"),
    (f"{MODEL} --max_body_mb 0", "--max_body_mb is 0.0"),
    (f"{MODEL} --request_timeout 0", "--request_timeout is 0.0"),
    (f"{MODEL} --api_key_env NO_SUCH_KEY", "--api_key_env NO_SUCH_KEY: this environment variable is not set"),
    (f"{MODEL} --device cuda:99", "--device cuda:99: not available"),
]


@pytest.mark.parametrize(("line", "words"), BAD, ids=[line[:80] for line, _ in BAD])
def test_bad_flags_are_one_line_before_weights_are_loaded(desk, capfd, monkeypatch, line, words):
    import transformers

    def no_weights(*args, **kwargs):
        raise AssertionError("weights were loaded before the error")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", no_weights)
    assert main(["serve", *shlex.split(line)]) == 2
    out, err = capfd.readouterr()
    assert err.count("\n") == 1, err
    assert err.startswith("inverselm serve: error: ")
    for word in words.split("|"):
        assert word in err
    assert out == ""


def test_centring_takes_one_baseline(desk, capsys):
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(desk / "nobase", desk / "other")
    weights = load_file(desk / "other/model.safetensors")
    save_file({name: 2 * w for name, w in weights.items()}, desk / "other/model.safetensors", {"format": "pt"})
    argv = ["serve", *shlex.split(MODEL), "--baseline", "sft/baseline,other", "--centre_rewards"]
    assert main(argv) == 2
    assert "--centre_rewards is defined for one baseline" in capsys.readouterr().err


def test_a_port_that_is_taken(desk, capsys):
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", *shlex.split(MODEL), "--port", str(port)]) == 2
    assert f"--host 127.0.0.1 --port {port}: cannot listen there (Address already in use)" in capsys.readouterr().err


def test_a_port_that_is_taken_while_models_are_loaded():
    """An address can be bound twice as long as nobody listens."""
    ours = listening.bound("127.0.0.1", 0)
    with closing(ours), closing(listening.bound("127.0.0.1", ours.getsockname()[1])) as other:
        other.listen()
        with pytest.raises(UserError, match="cannot listen there any more"):
            serve.serve(None, ours)


def test_missing_packages_are_named_with_their_extra(desk, capsys, monkeypatch):
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else real(name))
    assert main(["serve", *shlex.split(MODEL)]) == 2
    assert (
        "needs the package uvicorn, which is not installed: pip install 'inverselm[serve]'" in capsys.readouterr().err
    )


def test_addresses():
    for host, alone in (("127.0.0.1", True), ("127.8.0.1", True), ("::1", True), ("0.0.0.0", False), ("::", False)):
        assert listening.is_loopback(host) is alone
    with listening.bound("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert listening.url_of(listener) == f"http://127.0.0.1:{port}"
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_second_ctrl_c_does_not_wait(desk, monkeypatch, capsys):
    monkeypatch.setattr(serve, "serve", lambda service, listener: service.close())  # None: not all was answered
    assert main(["serve", "--port", "0", *shlex.split(MODEL)]) == 130
    assert "stopped. Requests that were not answered yet were cut off." in capsys.readouterr().err


def test_help(capsys):
    assert main(["serve", "--help"]) == 0
    assert "--max_row_tokens" in capsys.readouterr().out
    assert Namespace(**vars(serve.ServeArguments())).host == "127.0.0.1"
