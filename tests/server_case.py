"""A server on this machine, for the tests of downloads."""

import contextlib
import http.server
import threading


@contextlib.contextmanager
def serving(handler, monkeypatch, **facts):
    """A running server whose requests `handler` answers; facts: its attributes. It is asked without a proxy."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    httpd.daemon_threads = True
    vars(httpd).update(facts)
    thread = threading.Thread(target=httpd.serve_forever, kwargs=dict(poll_interval=0.01), daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()
    thread.join()
