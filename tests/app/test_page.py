"""The page itself, where Gradio is installed: it opens offline, shows what `functions` gives, asks nobody outside."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason='gradio is not installed: pip install "aligntok[app]" (make test-release does)')
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # of Gradio's own libraries
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
#: Says each name that the process looks up, and connects nowhere but to this machine.
WATCH = """
import socket, sys
looked_up, connected = socket.getaddrinfo, socket.socket.connect
def here(host):
    return host in (None, "", "localhost", "127.0.0.1", "::1", "0.0.0.0", b"127.0.0.1", b"localhost")
def getaddrinfo(host, *rest, **more):
    if not here(host):
        print("OUTSIDE", host, flush=True)
        raise OSError("no network")
    return looked_up(host, *rest, **more)
def connect(self, address):
    if isinstance(address, tuple) and not here(address[0]):
        print("OUTSIDE", address, flush=True)
        raise OSError("no network")
    return connected(self, address)
socket.getaddrinfo, socket.socket.connect = getaddrinfo, connect
from aligntok.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def served(tiny_tokenizer, tmp_path_factory):
    """(port, log) of `aligntok app` with a tokenizer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("app") / "log"
    command = [sys.executable, "-c", WATCH, "app", str(tiny_tokenizer), "--port", str(port), "--device", "cpu"]
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    behind = dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")  # where nobody is
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env={**environment, **behind, "OMP_NUM_THREADS": "1"}
        )
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1"
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).close()
                break
            except OSError:
                time.sleep(0.2)
        yield port, log
    finally:
        process.terminate()
        process.wait(30)


def test_a_picture_that_is_sent_comes_back_as_the_tokenizer_makes_it(served, tiny_tokenizer, tmp_path):
    from gradio_client import Client, handle_file

    import aligntok

    path = tmp_path / "cat.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 32, 3), dtype=np.uint8)).save(path)
    client = Client(f"http://127.0.0.1:{served[0]}", verbose=False, download_files=str(tmp_path / "got"))
    made, _, words = client.predict(handle_file(str(path)), api_name="/reconstruct")
    assert re.fullmatch(rf"{tiny_tokenizer.name}: PSNR \d+\.\d\d dB, latent 4 x 5 x 4, f8", words)
    own = aligntok.load_tokenizer(tiny_tokenizer).reconstruct(Image.open(path))
    assert np.abs(np.asarray(Image.open(made).convert("RGB"), int) - np.asarray(own, int)).max() <= 1


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on PATH, to open the page in")
def test_a_browser_shows_it_and_nothing_is_asked_outside(served, tmp_path):
    port, log = served
    net = tmp_path / "net.json"
    options = ["--virtual-time-budget=20000", "--window-size=1280,1000", "--dump-dom", f"--log-net-log={net}"]
    options += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", f"--user-data-dir={tmp_path / 'profile'}"]
    command = [CHROMIUM, *FLAGS, *options, f"http://127.0.0.1:{port}/"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    for shown in ("Reconstruct", "Interpolate", "How near", "error x4"):
        assert shown in done.stdout, shown
    # an event a line; what the browser asks its makers has another initiator
    lines = [line for line in net.read_text().splitlines() if f'"initiator":"http://127.0.0.1:{port}"' in line]
    urls = {re.search(r'"url":"([^"]+)"', line)[1] for line in lines}
    assert len(urls) > 10
    assert {url for url in urls if not re.match(rf"(http|ws)://127\.0\.0\.1:{port}/", url)} == set()
    assert "OUTSIDE" not in log.read_text(), log.read_text()


def test_a_port_that_is_taken_is_said_in_a_sentence(served, tiny_tokenizer, capsys):
    from aligntok import cli

    assert cli.main(["app", str(tiny_tokenizer), "--port", str(served[0])]) == 2
    assert f"port {served[0]} is taken; give another, such as --port {served[0] + 1}" in capsys.readouterr().err
