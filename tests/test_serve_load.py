"""Load on a server: figures of all requests, or an error."""

import http.server
import json
import threading

import pytest

from scripts import serve_load


@pytest.fixture
def address():
    """Of a server that gives three tokens to each request, but fails at a prompt that says so."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            said = json.dumps({"usage": {"completion_tokens": 3}}).encode()
            self.send_response(500 if body["prompt"] == "fail" else 200)
            self.send_header("content-length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address
        server.shutdown()


def test_every_request_is_made_once(address):
    found = serve_load.load(address, [{"prompt": "a"}] * 9, clients=2, streams=False)
    assert (found["requests"], found["clients"]) == (9, 2) and found["tokens_per_second"] > 0


@pytest.mark.parametrize("place", [0, 5, 8])
def test_one_that_fails_leaves_no_figures(address, place):
    bodies = [{"prompt": "fail" if number == place else "a"} for number in range(9)]
    with pytest.raises(SystemExit, match="^error: a request failed: 500: "):
        serve_load.load(address, bodies, clients=2, streams=False)
